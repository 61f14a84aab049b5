"""Where a classifier looks: how much each pixel of an image matters for a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unlearnx._arguments import checked
from unlearnx._batches import scores as scores_of
from unlearnx._checks import check_at_least_one, model_device
from unlearnx._data import BATCH_SIZE
from unlearnx._extras import extra
from unlearnx._memory_order import ImageOrder
from unlearnx._models import check_gradients_possible
from unlearnx._modes import evaluating

METHODS = ("grad_cam", "input_gradient")
ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU)
# Parts of the errors of captum and autograd about a layer that the scores do not depend on.
UNUSED_LAYER_ERRORS = ("did not obtain any outputs", "appears to not have been used", "does not require grad")


@checked
def saliency(
    model: nn.Module,
    images: Tensor,
    targets: Tensor | None = None,
    *,
    method: str = "grad_cam",
    layer: str | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """How much each pixel matters for the score of a class, (N, H, W) on the model's device; needs captum.

    The model runs in eval mode and is left as it was. Each map is divided by its maximum and lies in [0, 1], so only
    the shapes of maps of different images or models can be compared. A map without a positive value is all zeros.

    Args:
        model: maps images to class scores (N, classes).
        images: floating point (N, C, H, W).
        targets: the class (N,) that each map is for; None for the class that the model predicts.
        method: ``"grad_cam"``: the channels of a convolution, weighted by the mean gradient of the score with respect
            to each, summed, cut off below zero and interpolated (bilinear) to the size of the image.
            ``"input_gradient"``: the largest absolute gradient of the score with respect to the channels of a pixel.
        layer: name of the module whose output Grad-CAM takes; None for the last ``nn.Conv2d`` of
            ``named_modules()``, or the activation that follows it in an ``nn.Sequential``.
        batch_size: images in one forward pass.

    Raises:
        ImportError: captum is not installed.
        ValueError: images, targets or scores have the wrong shape, a target is not a class, the method is unknown,
            there is no such layer, its output is not a map, or the scores do not depend on it.

    Source: Selvaraju et al., "Grad-CAM", ICCV 2017; Simonyan et al., "Deep inside convolutional networks", 2014.

    Example:
        >>> maps = saliency(digits_cnn(), torch.rand(2, 1, 8, 8), method="input_gradient")
        >>> maps.shape, maps.amax((1, 2))
        (torch.Size([2, 8, 8]), tensor([1., 1.]))
    """
    check_gradients_possible()
    _check(images, targets, method, layer)
    check_at_least_one(batch_size=batch_size)
    name = _layer(model, layer) if method == "grad_cam" else None
    device = model_device(model)
    maps = []
    with evaluating(model) as model:
        order = ImageOrder(model)
        for i in range(0, len(images), batch_size or BATCH_SIZE):
            part = slice(i, i + (batch_size or BATCH_SIZE))
            x = order(images[part].detach().to(device))
            wanted = None if targets is None else targets[part].to(device)
            found = _input_gradient(model, x, wanted) if name is None else _grad_cam(model, x, wanted, name)
            maps.append(found.detach())
    return _scaled(torch.cat(maps))


def _check(images: Tensor, targets: Tensor | None, method: str, layer: str | None) -> None:
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
    if layer is not None and method != "grad_cam":
        raise ValueError(f"layer is {layer!r}, expected None with method={method!r}")
    if images.dim() != 4 or not images.is_floating_point() or not len(images):
        raise ValueError(
            f"images: is {images.dtype} of shape {list(images.shape)}, expected floating point (N, C, H, W), N >= 1"
        )
    if targets is not None and (targets.shape != images.shape[:1] or targets.dtype != torch.int64):
        raise ValueError(
            f"targets: is {targets.dtype} of shape {list(targets.shape)}, expected classes, int64 ({len(images)},)"
        )


def _layer(model: nn.Module, name: str | None) -> str:
    """Name of the module whose output Grad-CAM takes."""
    modules = dict(model.named_modules())
    convolutions = [key for key, module in modules.items() if isinstance(module, nn.Conv2d)]
    if name is None:
        if not convolutions:
            choice = ", ".join(key for key in modules if key)
            raise ValueError(f"layer is None, but the model has no nn.Conv2d; name one of its modules: {choice}")
        name = _activated(modules, convolutions[-1])
    if name not in modules:
        raise ValueError(f"layer: the model has no module {name!r}; its convolutions are {', '.join(convolutions)}")
    return name


def _activated(modules: dict[str, nn.Module], name: str) -> str:
    """The activation that follows a convolution in an ``nn.Sequential``, directly or after a normalisation; else
    itself.

    Grad-CAM cuts off maps below zero. Before the activation, values of both signs often leave an empty map.
    """
    parent, _, last = name.rpartition(".")
    sequence = modules[parent]
    if isinstance(sequence, nn.Sequential):
        following = list(sequence._modules.items())[list(sequence._modules).index(last) + 1 :]
        for key, module in following[:2]:
            if isinstance(module, ACTIVATIONS):
                return f"{parent}.{key}" if parent else key
            if not isinstance(module, nn.modules.batchnorm._NormBase):
                break
    return name


def _grad_cam(model: nn.Module, x: Tensor, targets: Tensor | None, name: str) -> Tensor:
    captum, layer = _captum(), model.get_submodule(name)
    try:
        cam = captum.LayerGradCam(_scores(model, targets), layer).attribute(x, relu_attributions=True)
    except (AssertionError, RuntimeError) as error:
        if not any(words in str(error) for words in UNUSED_LAYER_ERRORS):
            raise
        raise ValueError(f"layer is {name!r}, expected a module that the scores depend on") from error
    if not isinstance(cam, Tensor) or cam.dim() != 4:
        found = f"a tensor of shape {list(cam.shape)}" if isinstance(cam, Tensor) else "several tensors"
        raise ValueError(f"layer: the output of {name!r} is {found}, expected maps (N, channels, height, width)")
    return captum.LayerAttribution.interpolate(cam, tuple(x.shape[2:]), "bilinear")[:, 0]


def _input_gradient(model: nn.Module, x: Tensor, targets: Tensor | None) -> Tensor:
    return _captum().Saliency(_scores(model, targets)).attribute(x.requires_grad_()).amax(1)


def _scores(model: nn.Module, targets: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Scores (N,) of the targets, or the highest, as a function of the images."""

    def scores(x: Tensor) -> Tensor:
        output = scores_of(model(x))
        if output.dim() != 2:
            raise ValueError(f"model: returned scores of shape {list(output.shape)}, expected (N, classes)")
        if targets is None:
            return output.max(1).values
        outside = targets[(targets < 0) | (targets >= output.shape[1])]
        if len(outside):
            raise ValueError(f"targets: {int(outside[0])} is out of range for {output.shape[1]} classes")
        return output.gather(1, targets[:, None])[:, 0]

    return scores


def _scaled(maps: Tensor) -> Tensor:
    peak = maps.amax((1, 2), keepdim=True)
    return maps / peak.where(peak > 0, 1)


def _captum() -> Any:
    with extra("saliency", "captum"):
        import captum.attr
    return captum.attr
