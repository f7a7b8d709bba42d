"""Probes in one JSON file, so that a job can be priced for a device that is not here.

    ~/.cache/fpe/probes.json    ($XDG_CACHE_HOME/fpe/probes.json), or the file that --probes names

A newer probe of a device takes the place of the older one with the same key. The file can be
carried to another machine as it is.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from fpe_core.checkpoint import choose_dtype_name
from pipeline.errors import ProbeError
from pipeline.probe import Probe, ProbeKey


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
