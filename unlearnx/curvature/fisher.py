"""Diagonals of the Fisher information, exact for every sample."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import DataLoader
from torch.utils.hooks import RemovableHandle

from unlearnx._checks import Params, check_deterministic, check_finite, model_device, qualified, select_params
from unlearnx._data import Data, batches, size
from unlearnx._losses import Loss, SampleLoss
from unlearnx._progress import progress_bar
from unlearnx.curvature.gradients import CHUNK, sample_loss, split_values
from unlearnx.curvature.layers import RULES, Squares
from unlearnx.curvature.prefix import FrozenPrefix

FISHER_TYPES = ("empirical", "mc", "exact", "batch")


def fisher_diagonal(
    model: nn.Module,
    loss_fn: Loss,
    data: Data,
    *,
    params: Params = None,
    fisher_type: str = "empirical",
    reduction: str = "mean",
    batch_size: int | None = None,
    compute_dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Mean (or sum) over samples of the squared gradients of their losses.

    Layers we know are worked out from their inputs and output gradients, without weight gradients of the batch;
    whatever else the model is made of goes through ``torch.func.vmap(grad)`` and is exact too. Which way a
    parameter goes is decided by comparing both on the first samples, so shared weights, layers called twice and
    layers with a forward of their own come out right.

    Args:
        model: in eval mode, or without layers that mix samples.
        loss_fn: ``loss_fn(output, y)``: losses per sample, their mean or their sum.
        data: pairs (x, y): tensors, a Dataset or a DataLoader.
        params: names of the parameters, ``"last:K"``, or None for all that require gradients. A frozen prefix
            runs once.
        fisher_type: ``"empirical"`` takes the labels of the data; ``"mc"`` draws one label a sample from the
            model's softmax; ``"exact"`` takes the expectation over all its classes; ``"batch"`` squares the
            gradient of each batch's mean loss and averages over batches, which is not the Fisher diagonal and
            depends on the batch size: it is what published SSD code computes.
        reduction: ``"mean"`` or ``"sum"`` over samples (over batches for ``"batch"``).
        batch_size: samples a pass; only ``"batch"`` depends on it.
        compute_dtype: run forward and backward in this dtype by autocast; sums stay in the parameters' dtype.
        generator: of the labels that ``"mc"`` draws, on the CPU.
        progress: show a progress bar (needs ``unlearnx[experiments]``).

    Returns:
        A tensor for each parameter, keyed like ``named_parameters()``, one copy of the parameters in all.

    Raises:
        ValueError: an unknown option, empty data, samples that interact, or a result that is not finite.

    Source: Kunstner, Hennig and Balles, "Limitations of the empirical Fisher approximation", NeurIPS 2019;
    ``"batch"``: Foster et al., AAAI 2024, public code.
    """
    if fisher_type not in FISHER_TYPES:
        raise ValueError(f"fisher_type is {fisher_type!r}, expected one of {', '.join(FISHER_TYPES)}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}, expected 'mean' or 'sum'")
    check_deterministic(model)
    names = select_params(model, params)
    cut = FrozenPrefix(model, names, data)
    loss, device = SampleLoss(loss_fn), model_device(model)
    if batch_size is None and isinstance(data, DataLoader):
        batch_size = data.batch_size
    data = cut.features(data, batch_size=batch_size)
    own = dict(model.named_parameters())
    total = {name: torch.zeros_like(own[name]) for name in names}
    engine: _Engine | None = None
    parts, n = 0, size(data)
    with progress_bar("Fisher diagonal", n, progress) as advance:
        for x, y in batches(data, batch_size, device):
            if engine is None:
                kind = _BatchSquares if fisher_type == "batch" else _SampleSquares
                engine = kind(cut.head, loss, names, x, y, compute_dtype)
            for labels, w in _labels(cut.head, fisher_type, x, y, generator):
                engine.add(total, x, labels, w)
            parts += 1 if fisher_type == "batch" else len(x)
            advance(len(x))
    check_finite("Fisher diagonal", total.items())
    if reduction == "mean":
        for t in total.values():
            t /= parts
    return total


def _labels(
    model: nn.Module, fisher_type: str, x: Tensor, y: Tensor, generator: torch.Generator | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Labels to differentiate the loss at, with the weights of the samples."""
    if fisher_type in ("empirical", "batch"):
        yield y, None
        return
    with torch.no_grad():
        output = model(x)
    if output.dim() != 2:
        raise ValueError(
            f'model: output has shape {list(output.shape)}, fisher_type="{fisher_type}" needs (N, classes)'
        )
    probabilities = output.softmax(1, dtype=torch.float64 if output.dtype == torch.float64 else torch.float32)
    if fisher_type == "mc":
        drawn = torch.multinomial(probabilities.cpu(), 1, generator=generator)  # the same labels on every device
        yield drawn.squeeze(1).to(y.device), None
        return
    for c in range(output.shape[1]):
        yield torch.full_like(y, c), probabilities[:, c]


class _Engine:
    """Adds squares of gradients to a total; forward and backward run in `dtype`, the squares do not."""

    def __init__(
        self,
        model: nn.Module,
        loss: SampleLoss,
        names: list[str],
        x: Tensor,
        y: Tensor,
        dtype: torch.dtype | None,
    ):
        self.model, self.loss, self.dtype = model, loss, dtype
        self._prepare(names, x, y)

    def _prepare(self, names: list[str], x: Tensor, y: Tensor) -> None:
        """Decide, on the first batch, how each parameter is to be treated."""
        raise NotImplementedError

    def add(self, total: dict[str, Tensor], x: Tensor, y: Tensor, w: Tensor | None) -> None:
        """Add the squares of a batch, its samples weighted by `w`."""
        raise NotImplementedError

    def _autocast(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, self.dtype, enabled=self.dtype is not None)


class _BatchSquares(_Engine):
    """Squares of the gradient of the batch's mean loss."""

    def _prepare(self, names: list[str], x: Tensor, y: Tensor) -> None:
        self.values, self.rest = split_values(self.model, names)

    def add(self, total: dict[str, Tensor], x: Tensor, y: Tensor, w: Tensor | None) -> None:
        values = {name: v.requires_grad_() for name, v in self.values.items()}
        with torch.enable_grad(), self._autocast(x):
            objective = self.loss.total(functional_call(self.model, (values, self.rest), (x,)), y) / len(x)
            gradients = torch.autograd.grad(objective, list(values.values()), materialize_grads=True)
        for name, gradient in zip(values, gradients, strict=True):
            total[name].addcmul_(gradient, gradient)


class _SampleSquares(_Engine):
    """Sums of squared per-sample gradients: known layers by their rules, the rest by vmap(grad)."""

    def _prepare(self, names: list[str], x: Tensor, y: Tensor) -> None:
        # Nothing of the model requires gradients: the batch's weight gradients are never computed.
        self.frozen, _ = split_values(self.model, [name for name, _ in self.model.named_parameters()])
        self.layers = self._trusted_layers(names, x[:2], y[:2])
        known = {qualified(layer, p) for layer, ps in self.layers.items() for p in ps}
        self.values, self.rest = split_values(self.model, [name for name in names if name not in known])

    def add(self, total: dict[str, Tensor], x: Tensor, y: Tensor, w: Tensor | None) -> None:
        if self.layers:
            for name, squares in self._by_rules(self.layers, x, y, w).items():
                total[name] += squares
        if self.values:
            for start in range(0, len(x), CHUNK):
                s = slice(start, start + CHUNK)
                with self._autocast(x):
                    rows = vmap(grad(self._sample_loss), in_dims=(None, 0, 0))(self.values, x[s], y[s])
                for name, row in rows.items():
                    squares = row.square()
                    total[name] += squares.sum(0) if w is None else torch.tensordot(w[s].to(squares), squares, 1)

    def _sample_loss(self, values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return sample_loss(self.model, self.loss, values, self.rest, x, y)

    def _by_rules(self, layers: dict[str, list[str]], x: Tensor, y: Tensor, w: Tensor | None) -> Squares:
        """Squares of the parameters of `layers`; a layer that was not called, or not covered, is left out."""
        with torch.enable_grad(), self._autocast(x), _Recorder(self.model, layers) as recorder:
            objective = self.loss.total(functional_call(self.model, self.frozen, (x,)), y)
            if recorder.sources:
                torch.autograd.grad(objective, recorder.sources, allow_unused=True)
        result = {}
        for layer, (inputs, dy) in recorder.calls().items():
            module = self.model.get_submodule(layer)
            weights = None if w is None else w.to(dy)
            squares = RULES[type(module)](module, inputs, dy, weights) or {}
            for p in layers[layer]:
                if p in squares:
                    result[qualified(layer, p)] = squares[p]
        return result

    def _trusted_layers(self, names: list[str], x: Tensor, y: Tensor) -> dict[str, list[str]]:
        """Layers, with their parameters among `names`, whose rules agree with autograd on the first samples."""
        candidates: dict[str, list[str]] = {}
        for layer, module in self.model.named_modules():
            own = [p for p, _ in module.named_parameters(recurse=False) if qualified(layer, p) in names]
            if own and type(module) in RULES:
                candidates[layer] = own
        if not candidates:
            return {}
        try:
            by_rules = self._by_rules(candidates, x, y, None)
        except (RuntimeError, ValueError, IndexError):  # a forward that does unusual things with a known layer
            return {}
        values, rest = split_values(self.model, list(by_rules))
        expected = {name: torch.zeros_like(v) for name, v in values.items()}
        for i in range(len(x)):
            leaves = {name: v.requires_grad_() for name, v in values.items()}
            with torch.enable_grad(), self._autocast(x):
                objective = sample_loss(self.model, self.loss, leaves, rest, x[i], y[i])
                gradients = torch.autograd.grad(objective, list(leaves.values()), materialize_grads=True)
            for name, gradient in zip(leaves, gradients, strict=True):
                expected[name] += gradient.square()
        tolerance = 1e-2 if self.dtype else 1e-3
        trusted = {n for n in by_rules if (by_rules[n] - expected[n]).norm() <= tolerance * expected[n].norm()}
        chosen = {layer: [p for p in ps if qualified(layer, p) in trusted] for layer, ps in candidates.items()}
        return {layer: ps for layer, ps in chosen.items() if ps}


class _Recorder:
    """Records inputs and output gradients of layers during one forward and backward pass."""

    def __init__(self, model: nn.Module, layers: dict[str, list[str]]):
        self.sources: list[Tensor] = []
        self._inputs: dict[str, list[Tensor]] = {layer: [] for layer in layers}
        self._gradients: dict[str, list[Tensor]] = {layer: [] for layer in layers}
        self._handles: list[RemovableHandle] = [
            model.get_submodule(layer).register_forward_hook(self._hook(layer)) for layer in layers
        ]

    def __enter__(self) -> _Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, layer: str):
        def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not output.requires_grad:  # first layer: nothing before it requires gradients
                source = output.new_zeros((), requires_grad=True)
                self.sources.append(source)
                output = output + source
            self._inputs[layer].append(inputs[0].detach())
            output.register_hook(lambda dy: self._gradients[layer].append(dy.detach()))
            return output

        return record

    def calls(self) -> dict[str, tuple[Tensor, Tensor]]:
        """(x, dy) of the layers that were called exactly once, in the dtype of sums."""
        result = {}
        for layer, inputs in self._inputs.items():
            gradients = self._gradients[layer]
            if len(inputs) == len(gradients) == 1:
                x, dy = inputs[0], gradients[0]
                wide = torch.float64 if dy.dtype == torch.float64 else torch.float32
                result[layer] = (x.to(wide) if x.is_floating_point() else x, dy.to(wide))
        return result
