"""What a device takes for a checkpoint's work: `take_probe` measures, `estimate` multiplies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any


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
class PictureCost:
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
    formats: Mapping[str, PictureCost]
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
            formats={name: PictureCost(**cost) for name, cost in known.pop("formats").items()},
            **known,
        )
