"""Loss functions of any reduction as the losses of single samples, which the curvature engines need."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

from unlearnx._batches import Nest, changed, count, described, rows, scores, split_rows, take, tensors
from unlearnx._checks import named
from unlearnx._labels import IGNORED
from unlearnx._per_sample import is_per_sample
from unlearnx.losses import causal_lm, mean_of_labelled

TOLERANCE = 1e-4  # relative, between a loss of a batch in single precision and the losses of its samples
SHOWN_LABELS = 8  # labels of a batch that a message shows

Loss = Callable[[Any, Any], Tensor]


class SampleLoss:
    """Per-sample losses of a `loss_fn(output, y)` that returns losses per sample, their mean or their sum.

    The loss of a sample is the loss of that sample alone, times the weight of its class where torch's cross-entropy has
    class weights. The losses of torch have it in closed form. Any other function is called for every sample alone, by
    vmap or in a loop, and what it returns for the batch is compared with that. The function gets copies of the labels.

    Attributes:
        exact: whether the losses are known without a comparison, which waits for the device.
        ignore_index: the label of what has none.

    Raises:
        TypeError: the loss is no function.
    """

    def __init__(self, loss_fn: Loss):
        if not callable(loss_fn):
            raise TypeError(f"loss_fn is {loss_fn!r}, expected a function loss_fn(output, y)")
        self.loss_fn = loss_fn
        self._known = _closed_form(loss_fn)
        self._marked = is_per_sample(loss_fn)
        self._vmap_works = True
        self.exact = self._marked or self._known is not None
        self.ignore_index = _setting(loss_fn, "ignore_index", IGNORED)

    def total(self, output: Any, y: Nest) -> Tensor:
        """Sum of the per-sample losses of a batch, a 0-d tensor.

        Raises:
            ValueError: the loss is neither per sample nor the mean or sum of such losses.
        """
        return self.each(output, y).sum()

    def each(self, output: Any, y: Nest) -> Tensor:
        """The loss of every sample of a batch, (N,).

        Raises:
            ValueError: the loss is neither per sample nor the mean or sum of such losses.
        """
        n = count(y)
        output = wide(rows(output, n))
        losses = self._in_closed_form(output, y)
        if losses is not None:
            return losses
        value = self._returned(output, y, n)
        if n == 1 or (self._marked and value.dim() == 1):
            return _one_each(value, n)
        if value.dim() > 0:
            with torch.no_grad():
                alone = self._alone(output, y, n)
            losses = _one_each(value, n)
            _compare_each(losses, alone, y)
            return losses
        alone = self._alone(output, y, n)
        _compare_total(value, alone, y)
        return alone

    def value(self, output: Any, y: Nest) -> Tensor:
        """What the loss function returns, which is a scalar or a row for each sample.

        Raises:
            ValueError: it returns something else, or does not take the labels with these outputs.
        """
        n = count(y)
        output = wide(rows(output, n))
        losses = self._in_closed_form(output, y)
        return self._returned(output, y, n) if losses is None else losses

    def _in_closed_form(self, output: Any, y: Nest) -> Tensor | None:
        if self._known is None:
            return None
        with self._naming_misfits(output, y):
            return self._known(output, y)

    def _returned(self, output: Any, y: Nest, n: int) -> Tensor:
        value = self._call(output, y)
        if not isinstance(value, Tensor):
            raise ValueError(f"loss_fn: returned {type(value).__name__}, expected a tensor")
        if value.dim() > 0 and value.shape[0] != n:
            raise ValueError(
                f"loss_fn: returned shape {list(value.shape)} for {n} samples, "
                "expected one loss per sample, or their mean or sum"
            )
        return value

    def _alone(self, output: Any, y: Nest, n: int) -> Tensor:
        """The loss of every sample as the function gives it for that sample alone, (N,)."""
        if self._vmap_works:
            (outputs, output_of), (labels, labels_of) = split_rows(output, n), split_rows(y, n)

            def alone(outputs: list[Tensor], labels: list[Tensor]) -> Tensor:
                given = output_of([t.unsqueeze(0) for t in outputs])
                return self.loss_fn(given, labels_of([t.unsqueeze(0).clone() for t in labels])).sum()

            try:
                return vmap(alone)(outputs, labels)
            except Exception:  # the user's function may do what vmap cannot follow; what is wrong in it, the loop tells
                self._vmap_works = False
        parts = (slice(i, i + 1) for i in range(n))
        return torch.stack([self._call(take(output, s), take(y, s)).sum() for s in parts])

    def _call(self, output: Any, y: Nest) -> Tensor:
        before = _versions(output)
        with self._naming_misfits(output, y):
            value = self.loss_fn(output, changed(y, Tensor.clone))
        if _versions(output) != before:
            raise ValueError(
                "loss_fn: writes to the outputs that it is given, expected one that leaves them as they are, with "
                "`output - 1` in place of `output -= 1`"
            )
        return value

    @contextmanager
    def _naming_misfits(self, output: Any, y: Nest) -> Iterator[None]:
        def misfit() -> str:
            return (
                f"data: expected labels that loss_fn takes, got y of {described(y)} with outputs of {described(output)}"
            )

        with named(misfit):
            yield


def _versions(output: Any) -> list[int]:
    """How often each tensor of an output has been written to."""
    return [t._version for t in tensors(output) if not t.is_inference()]


def _one_each(value: Tensor, n: int) -> Tensor:
    return value.reshape(n, -1).sum(1) if value.dim() != 1 else value


def wide(output: Any) -> Any:
    """Outputs as autocast hands them to a loss: means of losses need more digits than half precision has."""
    if isinstance(output, Tensor):
        return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output
    return changed(output, wide) if any(t.dtype.itemsize == 2 for t in tensors(output)) else output


def _compare_total(value: Tensor, alone: Tensor, y: Nest) -> None:
    """Refuse a scalar loss of a batch that is neither the mean nor the sum of the losses of its samples."""
    n, parts = len(alone), alone.detach().double()
    whole, total, scale = torch.stack([value.detach().double(), parts.sum(), parts.abs().sum()]).tolist()
    if math.isfinite(total):
        if min(abs(whole * n - total), abs(whole - total)) <= _tolerance(value) * scale:
            return
        raise ValueError(
            f"loss_fn: returned {whole:.6g} for {n} samples whose losses one by one sum to {total:.6g}, expected their "
            f'mean or sum; return one loss per sample (reduction="none"){_weights_hint(y)}'
        )
    if math.isfinite(whole):
        bad = int((~parts.isfinite()).nonzero()[0])
        raise ValueError(
            f"loss_fn: returned {whole:.6g} for {n} samples, but {float(parts[bad]):.6g} for sample {bad} of them alone"
            f"{_label(y, bad)}, expected the mean or sum of their losses; return one loss per sample "
            '(reduction="none"), 0 where there is no label'
        )


def _compare_each(losses: Tensor, alone: Tensor, y: Nest) -> None:
    """Refuse losses of the samples of a batch that are others than those of the samples alone."""
    difference = (losses.detach() - alone).abs()
    limit = _tolerance(losses) * alone.abs().clamp(min=float(alone.nan_to_num(0, 0, 0).abs().mean()))
    wrong = difference > limit  # false where either is NaN
    wrong |= losses.detach().isfinite() != alone.isfinite()
    if wrong.any():
        bad = int(wrong.nonzero()[0])
        raise ValueError(
            f"loss_fn: returned {losses[bad].item():.6g} for sample {bad} of {len(losses)}{_label(y, bad)}, but "
            f"{float(alone[bad]):.6g} for that sample alone, expected a loss that does not depend on other samples"
        )


def _tolerance(value: Tensor) -> float:
    return 100 * TOLERANCE if value.dtype in (torch.bfloat16, torch.float16) else TOLERANCE


def _weights_hint(y: Nest) -> str:
    labels = ""
    if isinstance(y, Tensor) and y.dim() == 1:
        shown = ", ".join(f"{v:g}" for v in y[:SHOWN_LABELS].tolist())
        labels = f"; the batch has labels {shown}{', ...' if len(y) > SHOWN_LABELS else ''}"
    return (
        ", or pass torch's own loss, such as nn.CrossEntropyLoss, whose class weights and ignored labels are understood"
        + labels
    )


def _label(y: Nest, i: int) -> str:
    return f" (label {y[i].item():g})" if isinstance(y, Tensor) and y.dim() == 1 else ""


# --- The losses of torch ---

Known = Callable[[Any, Any], "Tensor | None"]

_MODULES: dict[type[nn.Module], tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    nn.CrossEntropyLoss: (F.cross_entropy, ("weight", "ignore_index", "label_smoothing")),
    nn.NLLLoss: (F.nll_loss, ("weight", "ignore_index")),
    nn.BCEWithLogitsLoss: (F.binary_cross_entropy_with_logits, ("weight", "pos_weight")),
    nn.BCELoss: (F.binary_cross_entropy, ("weight",)),
    nn.MSELoss: (F.mse_loss, ()),
    nn.L1Loss: (F.l1_loss, ()),
    nn.HuberLoss: (F.huber_loss, ("delta",)),
    nn.SmoothL1Loss: (F.smooth_l1_loss, ("beta",)),
}
_OF_CLASSES = (F.cross_entropy, F.nll_loss)


def torch_loss(loss_fn: Any) -> tuple[Callable[..., Tensor], dict[str, Any]] | None:
    """The function of ``torch.nn.functional`` that a loss is, with its settings; None where it is no such function.

    It may come as the function, in ``functools.partial``, or as a module. Modules with hooks and subclasses may compute
    something else.
    """
    settings: dict[str, Any] = {}
    while isinstance(loss_fn, partial):
        if loss_fn.args:
            return None
        settings = {**loss_fn.keywords, **settings}
        loss_fn = loss_fn.func
    module = _MODULES.get(type(loss_fn))
    if module is not None:
        if settings or "forward" in vars(loss_fn) or loss_fn._forward_hooks or loss_fn._forward_pre_hooks:
            return None
        function, names = module
        return function, {name: getattr(loss_fn, name) for name in (*names, "reduction")}
    if any(loss_fn is function for function, _ in _MODULES.values()):
        known = {"weight", "ignore_index", "label_smoothing", "reduction", "pos_weight", "delta", "beta"}
        return (loss_fn, settings) if set(settings) <= known else None
    return None


def _setting(loss_fn: Any, name: str, default: Any) -> Any:
    """A setting of a loss of torch or of ours, if it says."""
    known = torch_loss(loss_fn)
    if known is not None:
        return known[1].get(name, default)
    while isinstance(loss_fn, partial):
        if name in loss_fn.keywords:
            return loss_fn.keywords[name]
        loss_fn = loss_fn.func
    return default


def counted(loss_fn: Loss, per: str) -> Loss:
    """:func:`unlearnx.losses.causal_lm` with the mean over a text's tokens ("sample"), or their sum ("token").

    Any other loss is returned as it is.
    """
    function = loss_fn
    while isinstance(function, partial):
        function = function.func
    if function is not causal_lm:
        return loss_fn
    return causal_lm(ignore_index=_setting(loss_fn, "ignore_index", IGNORED), per=per)


def _closed_form(loss_fn: Any) -> Known | None:
    known = torch_loss(loss_fn)
    if known is None:
        return None
    function, settings = known
    reduction = settings.pop("reduction", "mean")
    if reduction not in ("mean", "sum", "none"):
        return None
    if function in _OF_CLASSES:
        return partial(_of_classes, function, settings, reduction)
    if settings.get("weight") is not None:  # it has the shape of the batch
        return None
    return partial(_elementwise, function, settings, reduction)


def _of_classes(
    function: Callable[..., Tensor], settings: dict[str, Any], reduction: str, output: Any, y: Any
) -> Tensor | None:
    if not isinstance(output, Tensor):
        output = scores(output)
        if output.dim() > 2:
            raise ValueError(
                "several positions a sample: pass unlearnx.losses.causal_lm, which shifts the labels by one, or "
                "unlearnx.losses.cross_entropy, which does not"
            )
    if not isinstance(y, Tensor) or output.dim() < 2:
        return None
    losses = function(output, y, **settings, reduction="none")
    if losses.dim() == 1:
        return losses
    if reduction == "mean":
        return mean_of_labelled(losses, y, settings.get("ignore_index", IGNORED))
    return losses.flatten(1).sum(1)


def _elementwise(
    function: Callable[..., Tensor], settings: dict[str, Any], reduction: str, output: Any, y: Any
) -> Tensor | None:
    if not isinstance(output, Tensor) or not isinstance(y, Tensor) or output.shape != y.shape:
        return None  # it would be broadcast: the comparison with single samples tells
    losses = function(output, y, **settings, reduction="none").reshape(len(y), -1)
    return losses.mean(1) if reduction == "mean" else losses.sum(1)
