"""Which order of memory the images that a model is given are fastest in, and may be in."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from unlearnx._batches import Nest
from unlearnx._checks import model_device
from unlearnx._copies import lent
from unlearnx._models import ROUNDING, alike
from unlearnx._modes import modes_kept
from unlearnx._random import undisturbed

BLOCK = 16  # channels that oneDNN works on at once


def channels_last(x: Tensor) -> Tensor:
    """Images on the CPU in the memory order that its convolutions are fastest in; anything else as it is."""
    images = x.dim() == 4 and x.device.type == "cpu"
    return x.contiguous(memory_format=torch.channels_last) if images else x


def may_reorder(model: nn.Module) -> bool:
    """Whether torch can take the convolutions of the model in the order of :func:`channels_last`, on the CPU.

    The gradient of a weight of 1x1 with a stride is not safe there where its input channels do not fill blocks: oneDNN
    writes past the end of its buffer. Other than of a ``Conv2d`` the stride is not known.
    """
    return not any(_may_crash(module) for module in model.modules())


def _may_crash(module: nn.Module) -> bool:
    weights = [p for p in module.parameters(recurse=False) if p.dim() == 4 and p.shape[2:] == (1, 1)]
    if not weights or (type(module) is nn.Conv2d and module.stride == (1, 1)):
        return False
    return any(p.shape[1] % BLOCK for p in weights)


class ImageOrder:
    """Puts images into the order that is fastest, for a model that gives the same outputs then.

    It is tried on two samples: a forward may ask for the usual order, as ``view`` does, or read memory as it lies. A
    model in train mode is tried in both modes.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self._taken: bool | None = None

    def __call__(self, x: Nest) -> Nest:
        images = isinstance(x, Tensor) and x.dim() == 4 and x.device.type == "cpu"
        return channels_last(x) if images and self.taken(x) else x

    def taken(self, x: Nest) -> bool:
        """Whether the model takes images such as `x`, in the other order."""
        if not isinstance(x, Tensor) or x.dim() != 4 or len(x) == 0:
            return False
        if self._taken is None:
            device = model_device(self._model)
            self._taken = (device.type != "cpu" or may_reorder(self._model)) and self._same(x[:2].to(device))
        return self._taken

    def _same(self, x: Tensor) -> bool:
        usual, fast = x.detach(), x.detach().clone(memory_format=torch.channels_last)
        twin = lent(self._model)
        call = twin.forward if isinstance(twin, fx.GraphModule) else twin  # the latter prints what it raises
        try:
            with torch.no_grad(), undisturbed(x.device), modes_kept(twin):
                if any(module.training for module in twin.modules()):
                    call(fast.clone())
                twin.eval()
                return alike(call(fast), call(usual.clone()), ROUNDING)
        except Exception:  # this runs the user's code, which may raise anything; so will the usual order if it is wrong
            return False
