"""bfloat16 on a CPU: whether the chip has instructions for it, and what is said where it has not.

Without them every product is converted there and back.
"""

from __future__ import annotations

import logging

import torch

_log = logging.getLogger(__name__)


def has_native_bfloat16() -> bool | None:
    """Whether this CPU multiplies bfloat16 itself (AVX512-BF16, AMX, Arm's BF16).

    None where torch does not tell, as older ones and those of other architectures.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is None:
        return None
    told = [bool(has) for name, has in capabilities().items() if "bf16" in name]
    return any(told) if told else None


def warn_of_slow_bfloat16(dtype: torch.dtype, device: torch.device) -> None:
    """Logs a warning where networks of this type are going to be slow for want of instructions."""
    if dtype == torch.bfloat16 and device.type == "cpu" and has_native_bfloat16() is False:
        _log.warning(
            "this CPU has no bfloat16 instructions (AVX512-BF16, AMX), so bfloat16 is emulated: "
            "every product is converted there and back; dtype auto takes float32"
        )
