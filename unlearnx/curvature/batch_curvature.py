"""The curvature of one batch at fixed parameters, prepared for products with many vectors."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from unlearnx._batches import Nest, arguments, count, rows, split_rows, tensors
from unlearnx._functional import functional_call
from unlearnx._graphs import nodes
from unlearnx._losses import SampleLoss
from unlearnx.curvature.double_backward import TwiceDifferentiable
from unlearnx.curvature.layers import Derivatives
from unlearnx.curvature.linearised import zeros
from unlearnx.curvature.samples import split_values
from unlearnx.ops._recording import Recording

Values = Sequence[Tensor]


class Snapshot:
    """A copy of a model's parameters and buffers, to detect any change of them.

    Attributes:
        leaves: the chosen parameters, requiring gradients.
        rest: all other parameters and buffers.
    """

    def __init__(self, model: nn.Module, names: list[str]):
        values, rest = split_values(model, names)
        self.leaves = {name: t.clone().requires_grad_() for name, t in values.items()}
        self.rest = {name: t.clone() for name, t in rest.items()}

    def with_own_leaves(self) -> Snapshot:
        """The same values in new leaves, so that autograd graphs on the two snapshots share no node."""
        other = copy.copy(self)
        other.leaves = {name: t.detach().requires_grad_() for name, t in self.leaves.items()}
        return other

    def is_current(self, model: nn.Module) -> bool:
        """Whether the model still has these values, dtypes and devices; always False where a value is NaN."""
        kept = {**self.leaves, **self.rest}
        now = {name: t for part in split_values(model, list(self.leaves)) for name, t in part.items()}
        return now.keys() == kept.keys() and all(
            t.device == kept[name].device and t.dtype == kept[name].dtype and torch.equal(t, kept[name])
            for name, t in now.items()
        )


class BatchCurvature:
    """The curvature of one batch at a snapshot's parameters: the sum over its samples, divided by `samples`."""

    def __init__(self, snapshot: Snapshot, samples: int):
        self.snapshot, self.samples = snapshot, samples

    def products(self, vectors: Sequence[Values], *, keep: bool) -> Iterator[Sequence[Tensor | None]]:
        """Products with `vectors`, each of one tensor per parameter; None stands for a tensor of zeros.

        With ``keep=False`` the graph is freed by the last product, and no further products can be taken.
        """
        raise NotImplementedError

    def bytes(self) -> int:
        """Memory that is kept for products, without the snapshot."""
        raise NotImplementedError


class RecordedBatch(BatchCurvature):
    """A batch whose autograd graph is recorded once, in the constructor, and differentiated by every product.

    Attributes:
        calls_own_functions: whether the model calls autograd functions of the user's; False where nobody asked for a
            ``look``.
    """

    linear = False  # whether the model is differentiated only once

    def __init__(
        self,
        model: nn.Module,
        loss: SampleLoss,
        snapshot: Snapshot,
        x: Nest,
        y: Nest,
        samples: int,
        use_channels_last: bool,
        look: bool = False,
    ):
        super().__init__(snapshot, samples)
        self.leaves = list(snapshot.leaves.values())
        self.flags = Recording()
        derivatives = Derivatives(self.flags, use_channels_last, linear=self.linear)
        with torch.enable_grad(), _differentiable_attention():
            with TwiceDifferentiable(derivatives):
                output = rows(functional_call(model, (snapshot.leaves, snapshot.rest), *arguments(x)), count(y))
            self.calls_own_functions = look and any(map(_is_own, nodes(tensors(output))))
            self.flags.recording = True
            self._record(output, loss, y)

    def _record(self, output: Any, loss: SampleLoss, y: Nest) -> None:
        raise NotImplementedError

    def _mean_loss(self, output: Any, loss: SampleLoss, y: Nest) -> Tensor:
        """The sum of the losses divided by `samples`, in a form that is cheap to differentiate twice."""
        with TwiceDifferentiable(Derivatives(Recording())):  # the loss may take gradients itself
            return loss.total(output, y) / self.samples

    def products(self, vectors: Sequence[Values], *, keep: bool) -> Iterator[Sequence[Tensor | None]]:
        for k, v in enumerate(vectors):
            yield self.product(v, keep=keep or k + 1 < len(vectors))

    def product(self, v: Values, *, keep: bool) -> list[Tensor | None]:
        """The product with one vector; see :meth:`products`."""
        raise NotImplementedError

    def roots(self) -> list[Tensor]:
        """The tensors that hold the graph."""
        raise NotImplementedError

    def check_twice_differentiable(self) -> None:
        """Refuse a graph without the derivatives of a function that has first ones only: products leave them out.

        Raises:
            ValueError: there is such a function.
        """
        if any(node.name() == "torch::autograd::Error" for node in nodes(self.roots())):
            raise ValueError(
                "model: it, or loss_fn, calls a function that is marked as once_differentiable, expected others in its "
                "place, since products with a curvature are second derivatives"
            )

    def bytes(self) -> int:
        return saved_bytes(self.roots(), [*self.snapshot.leaves.values(), *self.snapshot.rest.values()])

    def _backward(
        self, outputs: Sequence[Tensor | None], inputs: Sequence[Tensor], gradients: Values, *, keep: bool
    ) -> tuple[Tensor | None, ...]:
        """``torch.autograd.grad`` of the outputs that require gradients; None where there are none."""
        live = [(o, g) for o, g in zip(outputs, gradients, strict=True) if o is not None and o.requires_grad]
        if not live:
            return (None,) * len(inputs)
        outputs, gradients = zip(*live, strict=True)
        return torch.autograd.grad(outputs, inputs, gradients, retain_graph=keep, allow_unused=True)


class Hessian(RecordedBatch):
    """Hessian of the loss: the gradient is recorded, and a product differentiates it again."""

    def _record(self, output: Any, loss: SampleLoss, y: Nest) -> None:
        objective = self._mean_loss(output, loss, y)
        self.gradient: Sequence[Tensor | None] = [None] * len(self.leaves)
        if objective.requires_grad:
            self.gradient = _without_values(
                torch.autograd.grad(objective, self.leaves, create_graph=True, allow_unused=True)
            )

    def product(self, v: Values, *, keep: bool) -> list[Tensor | None]:
        return list(self._backward(self.gradient, self.leaves, v, keep=keep))

    def roots(self) -> list[Tensor]:
        return [g for g in self.gradient if g is not None]


class GaussNewton(RecordedBatch):
    """``J^T L J`` with the Jacobian J of the output and the Hessian L of the loss with respect to the output.

    ``J^T u`` is recorded for an arbitrary u. It is linear in u, so that the gradient of ``v . (J^T u)`` with respect to
    u is the product ``J v``, without forward-mode differentiation.
    """

    linear = True

    def _record(self, output: Any, loss: SampleLoss, y: Nest) -> None:
        given, output_of = split_rows(output, count(y))
        floating = [i for i, t in enumerate(given) if t.is_floating_point()]
        points = [t.detach().requires_grad_(t.is_floating_point()) for t in given]
        value = self._mean_loss(output_of(points), loss, y)
        inputs = [points[i] for i in floating]
        gradients: Sequence[Tensor | None] = [None] * len(inputs)
        if value.requires_grad:
            gradients = torch.autograd.grad(value, inputs, create_graph=True, allow_unused=True)
        # Of a model that returns several tensors, those that the loss reads.
        used = [i for i, g in zip(floating, gradients, strict=True) if g is not None and given[i].requires_grad]
        self.outputs, self.points = [given[i] for i in used], [points[i] for i in used]
        self.output_gradients = _without_values(g for i, g in zip(floating, gradients, strict=True) if i in used)
        self.u = [zeros(t, t.shape).requires_grad_() for t in self.outputs]
        self.transposed: Sequence[Tensor | None] = [None] * len(self.leaves)
        if self.outputs:
            self.flags.values = False
            self.transposed = _without_values(
                torch.autograd.grad(self.outputs, self.leaves, self.u, create_graph=True, allow_unused=True)
            )

    def product(self, v: Values, *, keep: bool) -> list[Tensor | None]:
        self.flags.tangents = True
        tangents = self._backward(self.transposed, self.u, v, keep=keep)
        self.flags.tangents = False
        if all(t is None for t in tangents):
            return [None] * len(self.leaves)
        directions = [_filled(t, u) for t, u in zip(tangents, self.u, strict=True)]
        curved = self._backward(self.output_gradients, self.points, directions, keep=keep)
        if all(t is None for t in curved):  # the loss is linear in the output
            return [None] * len(self.leaves)
        directions = [_filled(t, u) for t, u in zip(curved, self.u, strict=True)]
        return list(self._backward(self.outputs, self.leaves, directions, keep=keep))

    def check_transposed(self) -> None:
        """Refuse a model where J v is not the transpose of ``J^T u``: a backward pass in it has no derivative.

        Raises:
            ValueError: they differ by more than rounding.
        """
        generator = torch.Generator().manual_seed(0)
        u, v = ([torch.randn(t.shape, generator=generator).to(t) for t in ts] for ts in (self.outputs, self.leaves))
        gradients = self._backward(self.outputs, self.leaves, u, keep=True)
        self.flags.tangents = True
        tangents = self._backward(self.transposed, self.u, v, keep=True)
        self.flags.tangents = False
        (one, scale), (other, _) = _inner(gradients, v), _inner(tangents, u)
        half = any(t.dtype.itemsize == 2 for t in self.outputs)
        if abs(one - other) > (5e-2 if half else 1e-3) * scale:
            raise ValueError(
                "model: calls an autograd function of its own whose backward pass has no derivative, expected one made "
                "of functions of torch, since products with a curvature are second derivatives"
            )

    def roots(self) -> list[Tensor]:
        return [t for t in (*self.outputs, *self.output_gradients, *self.transposed) if t is not None]


def _inner(found: Sequence[Tensor | None], given: Values) -> tuple[float, float]:
    """An inner product, and what it would be if nothing in it cancelled."""
    products = [(a.double() * b.double()) for a, b in zip(found, given, strict=True) if a is not None]
    return sum(float(p.sum()) for p in products), sum(float(p.abs().sum()) for p in products)


def _is_own(node: Any) -> bool:
    """Whether a node is of an autograd function that is neither torch's nor ours."""
    function = getattr(type(node), "_forward_cls", None)
    return function is not None and not function.__module__.startswith(("torch.", "unlearnx."))


class _WithoutValue(torch.autograd.Function):
    """The graph of a tensor whose value is not used, and takes no memory."""

    @staticmethod
    def forward(ctx, t):
        return zeros(t, t.shape)

    @staticmethod
    def backward(ctx, dy):
        return dy


def _without_values(gradients: Iterable[Tensor | None]) -> list[Tensor | None]:
    return [None if t is None else _WithoutValue.apply(t) for t in gradients]


def _filled(t: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if t is None else t


CURVATURE_KINDS: dict[str, type[RecordedBatch]] = {"hessian": Hessian, "ggn": GaussNewton}


def saved_bytes(roots: Sequence[Tensor], others: Sequence[Tensor]) -> int:
    """Memory of all tensors saved in the graphs of `roots`; each storage counts once, storages of `others` do not."""
    storages: dict[int, int] = {}
    known = {t.untyped_storage().data_ptr() for t in others}
    for node in nodes(roots):
        for t in _saved(node):
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
    return sum(size for pointer, size in storages.items() if pointer not in known)


def _saved(node) -> Iterator[Tensor]:
    if hasattr(node, "saved_tensors"):  # a torch.autograd.Function
        values = list(node.saved_tensors)
    else:
        values = [getattr(node, name) for name in _saved_names(type(node).__name__, node)]
    for value in values:
        for t in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(t, Tensor):
                yield t


_saved_names_of_class: dict[str, list[str]] = {}


def _saved_names(kind: str, node) -> list[str]:
    """Names of the attributes in which a class of autograd nodes saves tensors; cached, since ``dir`` is slow."""
    if kind not in _saved_names_of_class:
        _saved_names_of_class[kind] = [name for name in dir(node) if name.startswith("_saved_")]
    return _saved_names_of_class[kind]


@contextmanager
def _differentiable_attention() -> Iterator[None]:
    """Attention in its math implementation, the only one that can be differentiated twice."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
