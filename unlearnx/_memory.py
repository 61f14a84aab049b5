"""How much memory there is to spare."""

from __future__ import annotations

import os

import torch


def free_bytes(device: torch.device) -> int:
    """Memory that tensors on `device` may still take: of the GPU, or of the machine where it says so, else 4 GiB.

    The processes that ``torchrun`` starts on a machine have equal parts of its memory; of GPUs each has its own.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        with open("/proc/meminfo") as f:
            sizes = dict(line.split(":") for line in f)
        return int(sizes["MemAvailable"].split()[0]) * 1024 // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    except (OSError, KeyError, ValueError):
        return 4 << 30
