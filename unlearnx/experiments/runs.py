"""What all studies share: training, saving, and how methods are described."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from unlearnx._data import Data, materialize
from unlearnx._files import write_atomically
from unlearnx._random import forked_random
from unlearnx.experiments.weights import Weights, state_tensors
from unlearnx.methods import Method, Pipeline
from unlearnx.models import Training

WARM_STEPS = 3  # of training, before some are timed

Network = TypeVar("Network", bound=nn.Module)


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def chosen_device(device: torch.device | str | None) -> torch.device:
    """The device of that name; None for :func:`default_device`.

    Raises:
        ValueError: there is no such device.
    """
    if device is None:
        return default_device()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device is {str(device)!r}: {str(error).splitlines()[0]}") from error
    return torch.device(device)


def untrained(network: Callable[[], Network], *, seed: int, device: torch.device) -> Network:
    """A network with random parameters, drawn with the seed."""
    with forked_random(device, seed=seed):
        return network().to(device)


def train(
    network: Callable[[], Network],
    training: Training,
    data: Data,
    *,
    seed: int,
    device: torch.device,
    progress: bool,
    file: Path | None = None,
) -> tuple[Network, float]:
    """A network trained from scratch, in eval mode, and the seconds it took.

    With `file`, the model is saved there at the end, and an interrupted training is resumed.
    """
    model = untrained(network, seed=seed, device=device)
    training, (x, y) = replace(training, seed=seed, progress=progress), materialize(data)
    # Another training of the same model has another file, so that none is kept from starting by what one has left.
    key = zlib.crc32(y.cpu().contiguous().numpy().tobytes(), zlib.crc32(f"{describe(training)}, {len(x)}".encode()))
    checkpoint = None if file is None else file.with_suffix(f".{key:08x}.checkpoint")
    seconds = training.run(model.train(), (x, y), checkpoint=checkpoint)
    model.eval()
    if file is not None:
        save_model(model, file)
        for left in file.parent.glob(f"{file.stem}.*.checkpoint"):
            left.unlink()
    return model, seconds


def loaded(network: Callable[[], Network], file: Path, *, device: torch.device) -> Network:
    """The network with the weights in a file, in eval mode. They may be of another precision than the network's.

    Raises:
        ValueError: the file is damaged or of another network.
    """
    model, weights = untrained(network, seed=0, device=device), Weights.read(file)
    own = state_tensors(model)
    cast = {name: t.to(own[name].dtype) if name in own else t for name, t in weights.tensors.items()}
    replace(weights, tensors=cast).load_into(model)
    return model.eval()


def estimated_seconds(
    network: Callable[[], nn.Module],
    training: Training,
    data: tuple[Tensor, Tensor],
    *,
    steps: int,
    device: torch.device,
) -> float:
    """Seconds that a training would take here and now, from so many of its steps, after some that warm up."""
    x, y = data
    model = untrained(network, seed=0, device=device).train()
    seconds = 0.0
    for taken in (WARM_STEPS, steps):
        part = slice(0, taken * training.batch_size)
        seconds = replace(training, epochs=1, progress=False).run(model, (x[part], y[part]))
    timed = min(len(x), steps * training.batch_size)
    return seconds * training.epochs * len(x) / timed


def room_for(models: int, network: Callable[[], nn.Module]) -> int:
    """Bytes on disk of so many models and of the checkpoint of one training."""
    with forked_random():
        tensors = network().state_dict().values()
    # The checkpoint has the model and two moments of each weight; the next one is written beside it.
    return (models + 6) * sum(t.numel() * t.element_size() for t in tensors)


def save_model(model: nn.Module, file: Path) -> None:
    """Write the state dict of `model`, in one step: an interruption leaves no half-written file."""
    write_atomically(file, lambda f: torch.save(model.state_dict(), f))


def write_json(file: Path, value: Any) -> None:
    """Write `value` as JSON, in one step: an interruption leaves no half-written file."""
    text = to_json(value)
    write_atomically(file, lambda f: f.write(text.encode()))


def to_json(value: Any) -> str:
    """`value` as JSON; NaN and infinities, which JSON does not have, become null."""
    return json.dumps(_finite(value), indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def slug(name: str) -> str:
    """`name` as part of a file's name: lower case, letters, digits and hyphens."""
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")


def check_files(names: Iterable[str]) -> None:
    """Refuse names of models of which two would have the same file.

    Raises:
        ValueError: two have.
    """
    files = [slug(name) for name in names]
    if len(set(files)) < len(files):
        raise ValueError(f"methods: some names give the same file, expected different ones, got {', '.join(files)}")


def describe(method: Method | Pipeline | Training) -> str:
    """The method, or training, as it is written in code, without the arguments that do not change what it does."""

    def written(value: Any) -> str:
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(written, value))}]"
        return describe(value) if isinstance(value, Method) else repr(value)

    def says_something(name: str, value: Any) -> bool:
        default = getattr(type(method), name, None) if name == "autocast" else None
        return name not in ("loss_fn", "seed", "progress") and value != default

    arguments = ", ".join(f"{k}={written(v)}" for k, v in vars(method).items() if says_something(k, v))
    return f"{type(method).__name__}({arguments})"
