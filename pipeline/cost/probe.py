"""What a device takes for a checkpoint's work: `measure_device` measures, `estimate` multiplies.

Probes in one JSON file, so that a job can be priced for a device that is not here.

    ~/.cache/fpe/probes.json    ($XDG_CACHE_HOME/fpe/probes.json), or the file that --probes names

A newer probe of a device takes the place of the older one with the same key. The file can be
carried to another machine as it is.

"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fpe_core.device import choose_dtype_name
from pipeline.errors import ProbeError


@dataclass(frozen=True)
class ProbeKey:
    """What the times of a probe hold for, beside the device.

    Attributes:
        fingerprint: of the checkpoint.
        dtype: of the networks, as torch writes it without "torch.".
        layers: those whose maps are replaced, as text.
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
    """Seconds in calls of the editor with so many sources and edits, per row and per picture.

    Attributes:
        inversion_row_s, source_row_s, edit_row_s: per UNet row, by kind (see `group_shape`).
        source_s: per source beside its rows: fitted, encoded.
        edit_s: per edit beside its rows: texts, decoded.
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
    """What a picture in some format takes: seconds of one core, and bytes."""

    seconds: float
    edited_bytes: float
    source_bytes: float


@dataclass(frozen=True)
class Probe:
    """What a device takes.

    Attributes:
        device: its name, as its maker writes it; device_type as torch does (cpu, cuda, mps).
        threads: of torch, which is what counts on a CPU.
        calls: by size, the smallest first.
        judge_s: per edit; 0 without a judge.
        fetch_s: per source, from its place to pixels of the model's size, on a CPU.
        load_s: the checkpoint, and the judge's models, and what their first calls take longer;
            once per worker.
        formats: by name, at the quality of the job that was probed.
        unet_rows: that were evaluated to measure.
        date: when, UTC.
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
        """Of a call with so many edits. Between two sizes what a call costs whatever is in it is
        shared out to its edits; beyond them they stand."""
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
        """JSON-able; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Probe:
        """Raises TypeError, KeyError or AttributeError for what `to_dict` did not write."""
        known = dict(values)
        return cls(
            key=ProbeKey(**known.pop("key")),
            calls=tuple(CallTimes(**call) for call in known.pop("calls")),
            formats={name: ImageFileCost(**cost) for name, cost in known.pop("formats").items()},
            **known,
        )


def default_file() -> Path:
    """Where probes are kept unless somebody says otherwise (XDG Base Directory Specification)."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache"
    return base / "fpe" / "probes.json"


@dataclass(frozen=True)
class ProbeStore:
    """The probes of a file; a file that is not there holds none."""

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
                f"{self.file} is no file of probes ({type(error).__name__}: {error}); name another "
                "with --probes, or delete it"
            ) from error

    def add(self, probe: Probe) -> None:
        """Raises ProbeError where the file cannot be written."""
        others = [p for p in self.probes() if _identity(p) != _identity(probe)]
        values = {"probes": [each.to_dict() for each in (*others, probe)]}
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            beside = self.file.with_name(f"{self.file.name}.{os.getpid()}")
            beside.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
            beside.replace(self.file)
        except OSError as error:
            raise ProbeError(f"{self.file}: the probe cannot be kept: {error.strerror}") from error

    def find(
        self, device: str, wanted: ProbeKey, dtype: str, threads: int | None = None
    ) -> Probe | None:
        """The newest probe of a device for such a job.

        `dtype` is the job's `model.dtype` and stands instead of the one in `wanted`: auto depends
        on the device. `threads`: those of a worker, None: any.
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
        """As `find`. Raises ProbeError, with what there is, where there is none."""
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
