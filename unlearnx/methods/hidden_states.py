"""A model as far as one of its modules: what it has made of its input there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unlearnx._batches import Nest, arguments, call, count, moved
from unlearnx._blocks import blocks_of
from unlearnx._checks import model_device, shown
from unlearnx._data import Data
from unlearnx._modes import evaluating
from unlearnx._sources import Samples

BLOCKS = 3  # so many modules of one class are taken for the blocks of a network


class _Reached(BaseException):  # not an Exception, which a model may catch
    def __init__(self, states: Any):
        self.states = states


class HiddenStates(nn.Module):
    """A model that answers with the output of one of its modules; what comes behind does not run.

    Args:
        model: its parameters are shared.
        layer: name of the module. Of several outputs the first is taken, and of several calls the first.
    """

    def __init__(self, model: nn.Module, layer: str):
        super().__init__()
        self.model, self.layer = model, layer
        self.training = model.training

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:  # noqa: D102
        def reach(_module: nn.Module, _args: Any, output: Any) -> None:
            raise _Reached(output)

        handle = self.model.get_submodule(self.layer).register_forward_hook(reach)
        try:
            self.model(*args, **kwargs)
        except _Reached as reached:
            states = reached.states
        else:
            raise ValueError(f"layer is {self.layer!r}, which the model did not call, expected a module that it calls")
        finally:
            handle.remove()
        if isinstance(states, (tuple, list)) and states:
            states = states[0]
        if not isinstance(states, Tensor) or not states.is_floating_point() or states.dim() < 2:
            what = f"of shape {list(states.shape)}" if isinstance(states, Tensor) else shown(states)
            raise ValueError(f"layer is {self.layer!r}, whose output is {what}, expected hidden states (N, ...)")
        return states


def states_of(hidden: nn.Module, x: Nest) -> Tensor:
    """The hidden states of inputs, (N, ...), by a :class:`HiddenStates`.

    Raises:
        ValueError: the module gives none, or they are not one for each sample.
    """
    states: Tensor = call(hidden, x)
    if len(states) != count(x):
        raise ValueError(
            f"layer: its output has shape {list(states.shape)}, expected the hidden states of {count(x)} samples first"
        )
    return states


def check_depends(hidden: HiddenStates, names: list[str], data: Data) -> None:
    """Refuse chosen parameters that the hidden states do not depend on.

    Args:
        names: of the chosen parameters in the model.
        data: samples, of which two are read, since statistics of one may not exist.

    Raises:
        ValueError: training them would change nothing.
    """
    x, _ = moved(Samples(data).read(slice(0, 2)), model_device(hidden))
    own = dict(hidden.named_parameters())
    chosen = {f"model.{name}": own[f"model.{name}"].detach().requires_grad_() for name in names}
    with evaluating(hidden) as twin, torch.enable_grad():
        states = torch.func.functional_call(twin, chosen, *arguments(x))
        found = torch.autograd.grad(states.sum(), list(chosen.values()), allow_unused=True)
    if all(gradient is None for gradient in found):
        raise ValueError(
            f"params: {names[0]!r} and all others come behind layer {hidden.layer!r}, expected some that its output "
            "depends on"
        )


def layer_of(model: nn.Module, layer: str | None) -> str:
    """The name of the module whose output is steered.

    Args:
        layer: None for the seventh sixteenth of the blocks, where the model has a list of them, as transformers have;
            otherwise for the module with parameters before the last.

    Raises:
        ValueError: there is no such module, or the model has one layer alone.
    """
    modules = dict(model.named_modules())
    if layer is not None:
        if layer not in modules or not layer:
            raise ValueError(f"layer is {layer!r}, expected the name of a module in model.named_modules()")
        return layer
    blocks = blocks_of(model)
    if len(blocks) >= BLOCKS:
        return blocks[7 * len(blocks) // 16][0]
    own = [name for name, m in modules.items() if name and any(True for _ in m.parameters(recurse=False))]
    if len(own) < 2:
        raise ValueError("model: has a single layer with parameters, expected hidden states between two")
    return own[-2]
