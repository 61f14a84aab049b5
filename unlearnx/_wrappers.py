"""Modules that run another one in their own way: compiled, or on several devices. We run what they were made from.

A compiled function holds on to the parameters it was compiled with, and replicas on other devices are copies, so
neither can be run with other parameters, nor watched layer by layer. In the copies of models that we work on,
:class:`Unwrapped` stands where the wrapper stood, so that names of modules and parameters stay the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


class Unwrapped(nn.Module):
    """What a wrapper was made from, under the name that it has in the wrapper.

    Args:
        wrapper: the wrapper, which is not changed.
        inner: a copy of the module inside it.
    """

    def __init__(self, wrapper: nn.Module, inner: nn.Module):
        super().__init__()
        self._entry = str(inner_name(wrapper))
        self._wrap = _wrapping(wrapper)
        self.add_module(self._entry, inner)
        self.training = wrapper.training
        self._take_hooks(wrapper)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.get_submodule(self._entry)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Attributes of the module inside, which a compiled one shows as its own."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            modules = self.__dict__.get("_modules", {})
            entry = self.__dict__.get("_entry")
            if entry not in modules:
                raise
            return getattr(modules[entry], name)

    def wrapped(self) -> nn.Module:
        """A wrapper like the original around the module inside."""
        result = self._wrap(self.get_submodule(self._entry))
        for hooks in _HOOKS:
            getattr(result, hooks).update(getattr(self, hooks))
        result.training = self.training
        return result

    def _take_hooks(self, wrapper: nn.Module) -> None:
        for hooks in _HOOKS:
            getattr(self, hooks).update(getattr(wrapper, hooks))


def inner_name(module: nn.Module) -> str | None:
    """The name that a wrapper has the module inside it under; None where it is no wrapper."""
    if isinstance(module, (DataParallel, DistributedDataParallel)):
        return "module"
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # importing it takes longer than all of unlearnx
    return "_orig_mod" if dynamo is not None and isinstance(module, dynamo.OptimizedModule) else None


def innermost(model: Any) -> Any:
    """The model of a user's that wrappers were put around, ours in a copy and peft's among them."""
    while True:
        name = model._entry if isinstance(model, Unwrapped) else inner_name(model)
        if name is not None:
            model = model.get_submodule(name)
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        else:
            return model


def rewrapped(copied: nn.Module, original: nn.Module) -> nn.Module:
    """A copy of `original` whose wrappers were taken off, with wrappers like those of the original.

    It is changed in place, except for the outermost wrapper.
    """
    for own, module in zip(copied.modules(), original.modules(), strict=True):
        _compile_alike(own, module)
    known: dict[int, nn.Module] = {}
    for module in reversed(list(copied.modules())):  # wrappers may be inside of wrappers
        for name, child in module._modules.items():
            module._modules[name] = known.get(id(child), child)
        if isinstance(module, Unwrapped):
            known[id(module)] = module.wrapped()
    return known.get(id(copied), copied)


def _compile_alike(copied: nn.Module, original: nn.Module) -> None:
    """Compile `copied` where `original` was by its own ``compile()``, which copies do not keep."""
    function = original._compiled_call_impl
    code = getattr(function, "__code__", None)
    if function is None or code is None:
        return
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    if "self" in cells:  # the settings that it was compiled with
        copied._compiled_call_impl = cells["self"].cell_contents(copied._call_impl)


def _wrapping(wrapper: nn.Module) -> Callable[[nn.Module], nn.Module]:
    """A function that puts a module into a wrapper with the settings of `wrapper`."""
    if isinstance(wrapper, DistributedDataParallel):
        settings = {
            "device_ids": wrapper.device_ids,
            "output_device": wrapper.output_device,
            "dim": wrapper.dim,
            "broadcast_buffers": wrapper.broadcast_buffers,
            "process_group": wrapper.process_group,
            "bucket_cap_mb": wrapper.bucket_bytes_cap / 2**20,
            "find_unused_parameters": wrapper.find_unused_parameters,
            "gradient_as_bucket_view": wrapper.gradient_as_bucket_view,
            "static_graph": wrapper.static_graph,
        }
        return _Wrapping(type(wrapper), settings)
    if isinstance(wrapper, DataParallel):
        devices = wrapper.device_ids
        if not devices:  # made without a GPU
            return _Wrapping(type(wrapper), {})
        return _Wrapping(
            type(wrapper), {"device_ids": devices, "output_device": wrapper.output_device, "dim": wrapper.dim}
        )
    return _Wrapping(type(wrapper), {"dynamo_ctx": wrapper.dynamo_ctx})


class _Wrapping:
    """A wrapper's type and settings, shared by copies of it: process groups and compilers cannot be copied."""

    def __init__(self, kind: Callable[..., nn.Module], settings: dict[str, Any]):
        self._kind, self._settings = kind, settings

    def __call__(self, module: nn.Module) -> nn.Module:
        return self._kind(module, **self._settings)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Wrapping:
        return self
