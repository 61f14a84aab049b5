"""A model as it was before training: initialised anew by its own modules, or built by a factory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from unlearnx._checks import model_device, named
from unlearnx._random import forked_random
from unlearnx._wrappers import Unwrapped, inner_name

Factory = Callable[[], nn.Module]


def trained_names(model: nn.Module) -> list[str]:
    """Names of the parameters that training from scratch trains: all, or those of adapters of peft.

    What an adapter was put on was there before, and is kept.
    """
    own = dict(model.named_parameters())
    return [name for name, p in own.items() if p.requires_grad] if _adapted(model) else list(own)


def initialise_anew(
    model: nn.Module, factory: Factory | None, seed: int, *, names: Iterable[str] | None = None, roughly: bool = False
) -> None:
    """Give `model` the values of an untrained one, in place.

    Args:
        model: of one device.
        names: of the parameters to initialise where there is no factory; None for all.
        factory: returns an untrained model; None takes ``type(model)._from_config(model.config)`` where the model has
            that, as those of HuggingFace do, and else the modules' own ``reset_parameters()``.
        seed: of the random values.
        roughly: as for :func:`reset_parameters`.

    Raises:
        TypeError: the factory is no function, or returns no module.
        ValueError: a parameter is not initialised by any module, or the factory's model has others.
    """
    factory = factory or (None if _adapted(model) else _own_factory(model))
    if factory is not None and not callable(factory):
        raise TypeError(f"factory is {factory!r}, expected a function that returns an untrained model, or None")
    with forked_random(model_device(model), seed=seed):
        if factory is None:
            reset_parameters(model, names, roughly=roughly)
        else:
            _take_values(model, made_by(factory))


def made_by(factory: Factory) -> Any:
    """What a factory returns.

    Raises:
        ValueError: it cannot be called without arguments, or fails.
    """
    with named(lambda: "factory: expected a function without arguments that returns an untrained model"):
        return factory()


def reset_parameters(model: nn.Module, names: Iterable[str] | None = None, *, roughly: bool = False) -> None:
    """Initialise parameters and statistics anew, by the modules' own ``reset_parameters()``, adapters by peft's.

    Args:
        names: of the parameters; None for all. Where some are kept, so are the statistics of modules without others.
        roughly: draw a parameter that none of them initialises from a Gaussian with the mean and deviation of its
            values.

    Raises:
        ValueError: a parameter is not initialised by any of them.
    """
    own = dict(model.named_parameters())
    before = {name: p.detach().clone() for name, p in own.items()}
    chosen = own if names is None else {name: own[name] for name in names}
    kept, changes = own.keys() - chosen.keys(), {id(p) for p in chosen.values()}
    with torch.no_grad():
        for parameter in chosen.values():
            if parameter.is_floating_point():
                parameter.fill_(torch.nan)  # what is left afterwards was not initialised
    for module in reversed(list(model.modules())):  # children first: a parent may initialise them in its own way
        if not isinstance(module, Unwrapped) and (not kept or any(id(p) in changes for p in module.parameters())):
            _reset(module)
    with torch.no_grad():
        for name in kept:
            own[name].copy_(before[name])
    left = [name for name, p in chosen.items() if p.isnan().any()]
    if roughly:
        with torch.no_grad():
            for name in left:
                deviation, mean = torch.std_mean(before[name], correction=0)
                model.get_parameter(name).copy_(mean + deviation * torch.randn_like(before[name]))
        return
    if left:
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(before[name])
        owner = model.get_submodule(left[0].rpartition(".")[0])
        raise ValueError(
            f"model: parameter {left[0]!r} of {type(owner).__name__} is not initialised by any reset_parameters(), "
            "expected one that is; give the method a factory that builds an untrained model"
        )


def _reset(module: Any) -> None:
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if callable(reset):
        reset()
    if _has_adapters(module):
        for adapter in module.r:
            module.reset_lora_parameters(adapter, True)


def _adapted(model: nn.Module) -> bool:
    return any(map(_has_adapters, model.modules()))


def _has_adapters(module: Any) -> bool:
    """Whether the module is a layer with adapters of peft (LoRA)."""
    return callable(getattr(module, "reset_lora_parameters", None))


def _own_factory(model: nn.Module) -> Factory | None:
    """How the model tells that it was built."""
    while isinstance(model, Unwrapped) or inner_name(model) is not None:
        model = next(model.children())
    build, config = getattr(type(model), "_from_config", None), getattr(model, "config", None)
    return (lambda: build(config)) if callable(build) and config is not None else None


def _take_values(model: nn.Module, source: nn.Module) -> None:
    if not isinstance(source, nn.Module):
        raise TypeError(f"factory: returned {type(source).__name__}, expected a torch.nn.Module")
    own, other = _plain(model), _plain(source)
    for name, t in own.items():
        if name not in other or other[name].shape != t.shape:
            came = f"{name!r} of shape {list(other[name].shape)}" if name in other else f"no {name!r}"
            raise ValueError(
                f"factory: returned a model with {came}, expected that of the model given, of shape {list(t.shape)}"
            )
    with torch.no_grad():
        for name, t in own.items():
            t.copy_(other[name])


def _plain(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by the names they have without wrappers."""
    inside = {
        name: inner_name(m) or (m._entry if isinstance(m, Unwrapped) else None) for name, m in model.named_modules()
    }
    plain = {}
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        parts = name.split(".")
        kept = [part for k, part in enumerate(parts) if inside.get(".".join(parts[:k])) != part]
        plain[".".join(kept)] = t
    return plain
