"""bfloat16 on a CPU without its instructions: a warning, not an error."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from fpe_core import load_checkpoint
from fpe_core.device import has_native_bfloat16, warn_of_slow_bfloat16

CPU = torch.device("cpu")


def with_capabilities(monkeypatch: pytest.MonkeyPatch, **capabilities: object) -> None:
    """What torch would report on another CPU."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)


@pytest.mark.parametrize(
    ("capabilities", "has"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx2": True, "avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"cpu_name": "of another kind"}, None),
    ],
)
def test_what_a_chip_can_is_what_torch_says(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, object], has: bool | None
) -> None:
    with_capabilities(monkeypatch, **capabilities)
    assert has_native_bfloat16() is has


def test_the_chip_here_is_read_as_linux_reads_it() -> None:
    flags = Path("/proc/cpuinfo")
    if not flags.exists() or "flags" not in flags.read_text() or has_native_bfloat16() is None:
        pytest.skip("not Linux on x86, or torch does not report it")
    words = set(flags.read_text().split())
    assert has_native_bfloat16() == bool({"avx512_bf16", "amx_bf16"} & words)


def test_loading_in_bfloat16_warns_where_it_is_slow(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_capabilities(monkeypatch, avx512_bf16=False)
    with caplog.at_level(logging.WARNING):
        loaded = load_checkpoint(tiny_folder, device="cpu", dtype="bfloat16")
    assert loaded.dtype == torch.bfloat16
    assert "no bfloat16 instructions" in caplog.text


def test_nothing_is_said_elsewhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_capabilities(monkeypatch, avx512_bf16=False)
    warn_of_slow_bfloat16(torch.float32, CPU)
    warn_of_slow_bfloat16(torch.bfloat16, torch.device("cuda"))
    with_capabilities(monkeypatch, avx512_bf16=True)
    warn_of_slow_bfloat16(torch.bfloat16, CPU)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    warn_of_slow_bfloat16(torch.bfloat16, CPU)
    assert caplog.text == ""
