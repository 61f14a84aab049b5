"""How much memory is free."""

from __future__ import annotations

import os

import torch

UNKNOWN_FREE_BYTES = 4 << 30  # assumed where the system does not say how much memory is free


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
