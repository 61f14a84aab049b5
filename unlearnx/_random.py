"""Random numbers that leave those of the caller alone."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_lock = threading.RLock()  # of the generators that all threads share: numbers that one draws are missing to another


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()  # a thread that the new process does not have may have held it


os.register_at_fork(after_in_child=_renew_lock)


@contextmanager
def forked_random(*devices: torch.device | str | None, seed: int | None = None) -> Iterator[None]:
    """Random numbers drawn in here, on the CPU, the current GPU and `devices`, change none that are drawn later.

    Other GPUs are neither woken up nor seeded, as torch would do where its own functions are given no devices. Other
    threads wait for their turn.

    Args:
        devices: where numbers are drawn; None names none.
        seed: what they start from; None goes on with the caller's.
    """
    gpus = _gpus(devices)
    with _lock, torch.random.fork_rng(devices=gpus):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            for gpu in gpus:
                torch.cuda.default_generators[gpu].manual_seed(seed)
        yield


@contextmanager
def undisturbed(*devices: torch.device | str | None) -> Iterator[None]:
    """The same for trials of the user's code, which may draw from NumPy and Python too; other threads do not wait.

    While another thread draws, generators are left alone: put back, they would give it the same numbers again.
    """
    if not _lock.acquire(blocking=False):
        yield
        return
    try:
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - users draw from these
        try:
            with torch.random.fork_rng(devices=_gpus(devices)):
                yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
    finally:
        _lock.release()


def random_states(*devices: torch.device | str | None) -> tuple[Any, ...]:
    """The states of the generators of torch, NumPy and Python; equal where nothing was drawn in between."""
    numpy: Any = np.random.get_state()  # noqa: NPY002
    torchs = [torch.get_rng_state(), *(torch.cuda.get_rng_state(gpu) for gpu in _gpus(devices))]
    return random.getstate(), numpy[1].tobytes(), numpy[2:], *(t.numpy().tobytes() for t in torchs)


def _gpus(devices: tuple[torch.device | str | None, ...]) -> list[int]:
    named = [torch.device(device) for device in devices if device is not None]
    gpus = {device.index for device in named if device.type == "cuda"}
    if None in gpus or torch.cuda.is_initialized():
        gpus = (gpus - {None}) | {torch.cuda.current_device()}
    return sorted(gpus)
