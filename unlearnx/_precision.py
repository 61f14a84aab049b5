"""Which precision products are taken in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

backends: Any = torch.backends  # whose newer switches mypy does not know


@contextmanager
def exact_products() -> Iterator[None]:
    """Matrix products, convolutions and recurrent layers do not replace float32 by TF32 or bfloat16.

    torch has these switches for the process, not for a thread. Those that are off already are not touched.
    """
    with ExitStack() as restore:
        # Each switch exists twice. The older one cannot be read where the newer one was used, nor by the model where
        # we used the newer one: so ours is the one that the user chose.
        try:
            before = torch.get_float32_matmul_precision()
        except RuntimeError:
            _turn_off(restore, backends.cuda.matmul, backends.mkldnn.matmul)
        else:
            if before != "highest":
                torch.set_float32_matmul_precision("highest")
                restore.callback(torch.set_float32_matmul_precision, before)
        try:
            allowed = backends.cudnn.allow_tf32
        except RuntimeError:
            _turn_off(restore, backends.cudnn.conv, backends.cudnn.rnn)
        else:
            if allowed:
                backends.cudnn.allow_tf32 = False
                restore.callback(setattr, backends.cudnn, "allow_tf32", True)
        _turn_off(restore, backends.mkldnn.conv, backends.mkldnn.rnn)
        yield


def _turn_off(restore: ExitStack, *switches: Any) -> None:
    for switch in switches:
        if switch.fp32_precision in ("tf32", "bf16"):
            restore.callback(setattr, switch, "fp32_precision", switch.fp32_precision)
            switch.fp32_precision = "ieee"


def fast_dtype(device: torch.device | str) -> torch.dtype | None:
    """bfloat16 where the device computes with it several times faster than with float32 (AMX, CUDA), else None.

    Example:
        >>> fast_dtype("cpu") in (torch.bfloat16, None)
        True
    """
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else None


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to `dtype` on a device; does nothing for None, or on a CPU without bfloat16 instructions."""
    if device.type == "cpu" and not (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        dtype = None
    return torch.autocast(device.type, dtype, enabled=dtype is not None)
