"""Softmax regression, one linear layer with the cross entropy: its curvature in closed form, without autograd.

Hessian and Gauss-Newton matrix are the same, because the output is linear in the parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from unlearnx._batches import Nest
from unlearnx._checks import qualified
from unlearnx._labels import IGNORED
from unlearnx._losses import Loss, torch_loss
from unlearnx.curvature.batch_curvature import BatchCurvature, Snapshot, Values
from unlearnx.ops.softmax_linear import lissa_softmax_linear, softmax_linear_hvp

SAMPLES_PER_PASS = 4096  # more than for other models, since no graph is kept per sample
MAX_WORKSPACE_BYTES = 1 << 27  # of the ops' intermediate results; it limits how many vectors they take at once


def is_softmax_regression(model: nn.Module, names: Sequence[str], loss_fn: Loss) -> bool:
    """Whether the model is one linear layer, `names` all of its parameters, and the loss torch's plain cross entropy.

    A traced model (a head of :class:`FrozenPrefix`) is judged by its graph. Models with hooks and subclasses of
    ``nn.Linear`` are refused, since they may compute something else.
    """
    layer = _only_layer(model)
    if layer is None:
        return False
    name, linear = layer
    return (
        _is_plain(linear, nn.Linear)
        and list(names) == [qualified(name, parameter) for parameter, _ in linear.named_parameters()]
        and names[0] == qualified(name, "weight")
        and _is_plain_cross_entropy(loss_fn)
    )


def _only_layer(model: nn.Module) -> tuple[str, nn.Module] | None:
    """Name and module of the model's only layer, which it calls on its input; None if it does more."""
    if not isinstance(model, fx.GraphModule):
        return "", model
    nodes = list(model.graph.nodes)
    if _has_hooks(model) or [node.op for node in nodes] != ["placeholder", "call_module", "output"]:
        return None
    given, call, output = nodes
    if call.args != (given,) or call.kwargs or output.args != (call,):
        return None
    return call.target, model.get_submodule(call.target)


def _is_plain(module: object, kind: type[nn.Module]) -> bool:
    return type(module) is kind and "forward" not in vars(module) and not _has_hooks(module)


def _has_hooks(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def _is_plain_cross_entropy(loss_fn: Loss) -> bool:
    known = torch_loss(loss_fn)
    if known is None or known[0] is not F.cross_entropy:
        return False
    settings = known[1]
    return (
        settings.get("weight") is None
        and settings.get("label_smoothing", 0) == 0
        and settings.get("ignore_index", IGNORED) == IGNORED
    )


class SoftmaxRegression(BatchCurvature):
    """A batch of softmax regression: its features, with a column of ones where there is a bias, and probabilities."""

    def __init__(self, snapshot: Snapshot, x: Tensor, samples: int):
        super().__init__(snapshot, samples)
        parameters = [p.detach() for p in snapshot.leaves.values()]
        with torch.no_grad():
            self.probs = F.linear(x, *parameters).softmax(1)
            self.has_bias = len(parameters) == 2
            self.h = torch.cat([x, x.new_ones(len(x), 1)], 1) if self.has_bias else x.detach().contiguous()

    @classmethod
    def of(cls, snapshot: Snapshot, x: Nest, y: Nest, samples: int) -> SoftmaxRegression | None:
        """The batch (x, y); None where the ops do not cover its dtypes, shapes or labels, or these are wrong."""
        parameters = list(snapshot.leaves.values())
        classes, features = parameters[0].shape
        fits = (
            isinstance(x, Tensor)
            and isinstance(y, Tensor)
            and x.dtype in (torch.float32, torch.float64)
            and all(p.dtype == x.dtype for p in parameters)
            and x.device.type in ("cpu", "cuda")
            and not torch.is_autocast_enabled(x.device.type)
            and x.shape == (len(y), features)
            and y.dtype == torch.int64
            and y.dim() == 1
            and bool(((y >= 0) & (y < classes)).all())  # none is IGNORED
        )
        return cls(snapshot, x, samples) if fits else None

    def products(self, vectors: Sequence[Values], *, keep: bool) -> Iterator[Sequence[Tensor | None]]:
        """The products, with as many vectors at once as the workspace allows; `keep` does not matter."""
        for part in self._parts(vectors, len(self.h)):
            with torch.no_grad():
                result = softmax_linear_hvp(self.h, self.probs, part, from_logits=False)
                result.mul_(len(self.h) / self.samples)
            yield from map(self._split, result)

    @torch.no_grad()
    def lissa(
        self,
        vectors: Sequence[Values],
        *,
        damping: float,
        scale: float,
        batch_size: int,
        iterations: int,
        patience: int,
        order: Tensor | None,
    ) -> tuple[list[Values], Tensor]:
        """Solutions and histories (iterations, K) of :func:`unlearnx.ops.lissa_softmax_linear` for K vectors."""
        solutions: list[Values] = []
        histories: list[Tensor] = []
        for part in self._parts(vectors, batch_size):
            x, history = lissa_softmax_linear(
                self.h,
                self.probs,
                part,
                damping=damping,
                scale=scale,
                batch_size=batch_size,
                iterations=iterations,
                patience=patience,
                order=order,
                from_logits=False,
            )
            solutions += [self._split(row) for row in x]
            histories.append(history)
        return solutions, torch.cat(histories, 1)

    def bytes(self) -> int:
        """Memory of features and probabilities."""
        return self.h.nbytes + self.probs.nbytes

    def _parts(self, vectors: Sequence[Values], batch_size: int) -> Iterator[Tensor]:
        """The vectors as (K, C, F), the bias as a last feature, as many at once as the workspace allows."""
        most = max(1, MAX_WORKSPACE_BYTES // (batch_size * self.probs.shape[1] * self.probs.element_size()))
        for start in range(0, len(vectors), most):
            part = vectors[start : start + most]
            yield torch.stack([torch.cat([v[0], v[1][:, None]], 1) if self.has_bias else v[0] for v in part])

    def _split(self, row: Tensor) -> list[Tensor]:
        """One tensor per parameter from (C, F)."""
        return [row[:, :-1].contiguous(), row[:, -1].contiguous()] if self.has_bias else [row]
