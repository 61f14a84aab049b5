"""How much memory is free, and giving back what is not needed."""

from __future__ import annotations

import ctypes
import os

import torch

UNKNOWN_FREE_BYTES = 4 << 30  # assumed where the system does not say how much memory is free


def give_back() -> None:
    """Return freed memory to the system, where the C library keeps it until it is asked (glibc).

    Small tensors that are kept of every batch otherwise pin the room of the batches between them, which glibc does not
    use again: memory grows as if all batches were kept.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def free_bytes(device: torch.device) -> int:
    """Memory in bytes that new tensors on `device` may take: of the GPU, or this process's part of the machine's.

    The processes that ``torchrun`` starts on a machine get equal parts of its free memory.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        with open("/proc/meminfo") as f:
            sizes = dict(line.split(":") for line in f)
        return int(sizes["MemAvailable"].split()[0]) * 1024 // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    except (OSError, KeyError, ValueError):
        return UNKNOWN_FREE_BYTES
