"""Random numbers that leave those of the caller alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def forked_random(*devices: torch.device | str | None, seed: int | None = None) -> Iterator[None]:
    """Random numbers drawn in here, on the CPU, the current GPU and `devices`, change none that are drawn later.

    Other GPUs are neither woken up nor seeded, as torch would do where its own functions are given no devices.

    Args:
        devices: where numbers are drawn; None names none.
        seed: what they start from; None goes on with the caller's.
    """
    named = [torch.device(device) for device in devices if device is not None]
    gpus = {device.index for device in named if device.type == "cuda"}
    if None in gpus or torch.cuda.is_initialized():
        gpus = (gpus - {None}) | {torch.cuda.current_device()}
    with torch.random.fork_rng(devices=sorted(gpus)):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            for gpu in gpus:
                torch.cuda.default_generators[gpu].manual_seed(seed)
        yield
