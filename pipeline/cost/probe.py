"""A probe: the times that a device takes for the work with a checkpoint. `measure` makes it, and
`estimate` multiplies it.

Probes are stored in one JSON file, so that a job can be priced for a device of another machine:

    ~/.cache/fpe/probes.json    ($XDG_CACHE_HOME/fpe/probes.json), or the file that --probes names

A newer probe of a device replaces the older one with the same key. The file can be copied to
another machine.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fpe_core.device import choose_dtype_name
from pipeline.errors import ProbeError


@dataclass(frozen=True)
class ProbeKey:
    """The conditions under which the times of a probe are valid, in addition to the device.

    Attributes:
        fingerprint: of the checkpoint.
        dtype: of the networks, as torch writes it without "torch.".
        layers: the layers whose attention maps are replaced, as text.
        judge: the models and scores of the judge, "" without one.
    """

    fingerprint: str
    width_px: int
    height_px: int
    dtype: str
    layers: str
    judge: str

    def __str__(self) -> str:
        return f"{self.without_dtype}, dtype {self.dtype}"

    @property
    def without_dtype(self) -> str:
        judged = f"judge {self.judge}" if self.judge else "no judge"
        return (
            f"checkpoint {self.fingerprint[:8]}, {self.width_px} x {self.height_px} px, "
            f"layers {self.layers}, {judged}"
        )

    def with_dtype(self, dtype: str) -> ProbeKey:
        return replace(self, dtype=dtype)


@dataclass(frozen=True)
class CallTimes:
    """Mean times in calls of the editor with this number of sources and edits.

    Attributes:
        inversion_row_s, source_row_s, edit_row_s: per UNet row, by kind (see `group_shape`).
        source_s: per source, in addition to its rows: fitting and encoding.
        edit_s: per edit, in addition to its rows: encoding the texts, and decoding.
    """

    sources: int
    edits: int
    inversion_row_s: float
    source_row_s: float
    edit_row_s: float
    source_s: float
    edit_s: float


@dataclass(frozen=True)
class ImageFileCost:
    """The cost of writing an image in some format: seconds of one core, and bytes."""

    seconds: float
    edited_bytes: float
    source_bytes: float


@dataclass(frozen=True)
class Probe:
    """The times that were measured on a device.

    Attributes:
        device: the maker's name of the device.
        device_type: as torch names it (cpu, cuda, mps).
        threads: torch's number of threads; it matters on a CPU only.
        calls: times by call size, the smallest first.
        judge_s: per edit; 0 without a judge.
        fetch_s: per source, for downloading, decoding and fitting it on a CPU.
        load_s: per worker, for loading the checkpoint and the judge's models, and for the extra
            time of their first calls.
        formats: cost of an image file by format, at the quality of the job that was measured.
        unet_rows: number of UNet rows that were evaluated to measure.
        date: of the measurement, in UTC.
    """

    key: ProbeKey
    device: str
    device_type: str
    threads: int
    calls: tuple[CallTimes, ...]
    judge_s: float
    fetch_s: float
    load_s: float
    formats: Mapping[str, ImageFileCost]
    unet_rows: int
    date: str

    def times_of(self, edits: float) -> CallTimes:
        """The times in a call with this number of edits. Between two measured sizes they are
        interpolated, with the fixed cost of a call divided among its edits. Outside, those of the
        nearest size are returned."""
        low, high = self.calls[0], self.calls[-1]
        if edits <= low.edits or low.edits == high.edits:
            return low
        if edits >= high.edits:
            return high
        share = (1 / low.edits - 1 / edits) / (1 / low.edits - 1 / high.edits)
        before, after = asdict(low), asdict(high)
        between = {name: before[name] + share * (after[name] - before[name]) for name in before}
        return CallTimes(**between | {"sources": high.sources, "edits": round(edits)})

    def to_dict(self) -> dict[str, Any]:
        """As values for JSON; `from_dict` reads them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Probe:
        """The reverse of `to_dict`. Raises TypeError, KeyError or AttributeError for other
        values."""
        known = dict(values)
        return cls(
            key=ProbeKey(**known.pop("key")),
            calls=tuple(CallTimes(**call) for call in known.pop("calls")),
            formats={name: ImageFileCost(**cost) for name, cost in known.pop("formats").items()},
            **known,
        )


def default_file() -> Path:
    """The default file of probes (XDG Base Directory Specification)."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # a user without a home, as in a container
        base = Path(tempfile.gettempdir())
    return base / "fpe" / "probes.json"


@dataclass(frozen=True)
class ProbeStore:
    """The probes in a file. A file that does not exist has none."""

    file: Path

    def probes(self) -> tuple[Probe, ...]:
        """All of them. Raises ProbeError for a file that cannot be read."""
        try:
            values = json.loads(self.file.read_text(encoding="utf-8"))
            return tuple(Probe.from_dict(each) for each in values["probes"])
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ProbeError(
                f"{self.file} is not a file of probes ({type(error).__name__}: {error}); name "
                "another with --probes, or delete it"
            ) from error

    def add(self, probe: Probe) -> None:
        """Adds a probe to the file. Raises ProbeError if the file cannot be written."""
        others = [p for p in self.probes() if _identity(p) != _identity(probe)]
        values = {"probes": [each.to_dict() for each in (*others, probe)]}
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.file.with_name(f"{self.file.name}.{os.getpid()}")
            temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
            temporary.replace(self.file)
        except OSError as error:
            raise ProbeError(
                f"{self.file}: the probe cannot be stored: {error.strerror}"
            ) from error

    def find(
        self, device: str, wanted: ProbeKey, dtype: str, threads: int | None = None
    ) -> Probe | None:
        """The newest probe of a device for a job with this key; None if there is none.

        `dtype` is the job's `model.dtype`, and replaces the one in `wanted`, because auto depends
        on the device. `threads`: number of threads of a worker; None: any.
        """
        fits = [
            probe
            for probe in self.probes()
            if probe.device == device
            and probe.key == _on(probe, wanted, dtype)
            and threads in (None, probe.threads)
        ]
        return fits[-1] if fits else None

    def of_device(self, device: str, wanted: ProbeKey, dtype: str) -> Probe:
        """As `find`. Raises ProbeError, with a list of the stored probes, if there is none."""
        found = self.find(device, wanted, dtype)
        if found is not None:
            return found
        probes = self.probes()
        if not probes:
            stored = f"{self.file} has none"
        else:
            lines = [f"  {p.device}: {p.key} ({p.date[:10]})" for p in probes]
            stored = "\n".join([f"{self.file} has:", *lines])
        raise ProbeError(
            f"no probe of a device {device!r} for {wanted.without_dtype}, dtype {dtype}. Run "
            f"`fpe plan` with this job there, and bring its file here (--probes FILE); {stored}"
        )


def _on(probe: Probe, wanted: ProbeKey, dtype: str) -> ProbeKey:
    return wanted.with_dtype(choose_dtype_name(dtype, probe.device_type))


def _identity(probe: Probe) -> tuple[str, int, ProbeKey]:
    threads = probe.threads if probe.device_type == "cpu" else 0
    return probe.device, threads, probe.key
