"""A batch at fixed parameters, ready for products with many vectors."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from unlearnx._losses import SampleLoss
from unlearnx.curvature.double_backward import TwiceDifferentiable
from unlearnx.curvature.per_sample import split_values
from unlearnx.ops._recording import Recording

Values = Sequence[Tensor]


class Snapshot:
    """The parameters and buffers of a model as they were, to notice when they have changed, in whatever way.

    Attributes:
        leaves: the chosen parameters, requiring gradients.
        rest: all other parameters and buffers.
    """

    def __init__(self, model: nn.Module, names: list[str]):
        values, rest = split_values(model, names)
        self.leaves = {name: t.clone().requires_grad_() for name, t in values.items()}
        self.rest = {name: t.clone() for name, t in rest.items()}

    def apart(self) -> Snapshot:
        """The same values in leaves of their own: graphs on the ones share no node with graphs on the others."""
        other = copy.copy(self)
        other.leaves = {name: t.detach().requires_grad_() for name, t in self.leaves.items()}
        return other

    def is_current(self, model: nn.Module) -> bool:
        """Whether the model still has these values, on the same device; never, where one is NaN."""
        kept = {**self.leaves, **self.rest}
        now = {name: t for part in split_values(model, list(self.leaves)) for name, t in part.items()}
        return now.keys() == kept.keys() and all(
            t.device == kept[name].device and t.dtype == kept[name].dtype and torch.equal(t, kept[name])
            for name, t in now.items()
        )


class BatchCurvature:
    """One batch at the parameters of a snapshot, to multiply its curvature, summed over it and divided by `samples`."""

    def __init__(self, snapshot: Snapshot, samples: int):
        self.snapshot, self.samples = snapshot, samples

    def products(self, vectors: Sequence[Values], *, keep: bool) -> Iterator[Sequence[Tensor | None]]:
        """The products with vectors of one tensor a parameter; None stands for zeros.

        Without `keep` they are the last.
        """
        raise NotImplementedError

    def bytes(self) -> int:
        """Memory of what is kept, the snapshot's left out."""
        raise NotImplementedError


class Recorded(BatchCurvature):
    """The graph that products differentiate is recorded here and used for each of them."""

    def __init__(
        self, model: nn.Module, loss: SampleLoss, snapshot: Snapshot, x: Tensor, y: Tensor, samples: int, images: bool
    ):
        super().__init__(snapshot, samples)
        self.leaves = list(snapshot.leaves.values())
        self.flags = Recording()
        mode = TwiceDifferentiable(self.flags, images=images)
        with torch.enable_grad():
            with _differentiable_attention(), mode:
                output = functional_call(model, (snapshot.leaves, snapshot.rest), (x,))
            if not isinstance(output, Tensor):
                raise ValueError(f"model: returned {type(output).__name__}, expected a tensor of a row a sample")
            self.flags.recording = True
            with _differentiable_attention():
                self._record(output, loss, y)

    def _record(self, output: Tensor, loss: SampleLoss, y: Tensor) -> None:
        raise NotImplementedError

    def products(self, vectors: Sequence[Values], *, keep: bool) -> Iterator[Sequence[Tensor | None]]:
        for k, v in enumerate(vectors):
            yield self.product(v, keep=keep or k + 1 < len(vectors))

    def product(self, v: Values, *, keep: bool) -> list[Tensor | None]:
        """The product with one vector."""
        raise NotImplementedError

    def roots(self) -> list[Tensor]:
        """What the graph hangs on."""
        raise NotImplementedError

    def bytes(self) -> int:
        return saved_bytes(self.roots(), [*self.snapshot.leaves.values(), *self.snapshot.rest.values()])

    def _backward(
        self, outputs: Sequence[Tensor | None], inputs: Sequence[Tensor], gradients: Values, *, keep: bool
    ) -> tuple[Tensor | None, ...]:
        """``torch.autograd.grad`` of those outputs that depend on anything."""
        live = [(o, g) for o, g in zip(outputs, gradients, strict=True) if o is not None and o.requires_grad]
        if not live:
            return (None,) * len(inputs)
        outputs, gradients = zip(*live, strict=True)
        return torch.autograd.grad(outputs, inputs, gradients, retain_graph=keep, allow_unused=True)


class Hessian(Recorded):
    """Second derivatives of the loss: the gradient is recorded, then differentiated again."""

    def _record(self, output: Tensor, loss: SampleLoss, y: Tensor) -> None:
        objective = loss.total(output, y) / self.samples
        self.gradient: Sequence[Tensor | None] = [None] * len(self.leaves)
        if objective.requires_grad:
            self.gradient = torch.autograd.grad(objective, self.leaves, create_graph=True, allow_unused=True)

    def product(self, v: Values, *, keep: bool) -> list[Tensor | None]:
        return list(self._backward(self.gradient, self.leaves, v, keep=keep))

    def roots(self) -> list[Tensor]:
        return [g for g in self.gradient if g is not None]


class GaussNewton(Recorded):
    """``J^T L J``, J being the Jacobian of the output and L the Hessian of the loss with respect to it.

    ``J^T u`` is recorded for an arbitrary u, in which it is linear: its derivative in direction v is ``J v``.
    """

    def _record(self, output: Tensor, loss: SampleLoss, y: Tensor) -> None:
        self.output, self.u = output, torch.zeros_like(output, requires_grad=True)
        self.transposed: Sequence[Tensor | None] = [None] * len(self.leaves)
        if output.requires_grad:
            self.flags.values = False
            self.transposed = torch.autograd.grad(output, self.leaves, self.u, create_graph=True, allow_unused=True)
        self.point = output.detach().requires_grad_()
        value = loss.total(self.point, y) / self.samples
        (self.slope,) = torch.autograd.grad(value, self.point, create_graph=True, materialize_grads=True)

    def product(self, v: Values, *, keep: bool) -> list[Tensor | None]:
        self.flags.tangents = True
        (tangent,) = self._backward(self.transposed, [self.u], v, keep=keep)
        self.flags.tangents = False
        if tangent is None:
            return [None] * len(self.leaves)
        (curved,) = self._backward([self.slope], [self.point], [tangent], keep=keep)
        if curved is None:  # the loss is linear in the output
            return [None] * len(self.leaves)
        return list(self._backward([self.output], self.leaves, [curved], keep=keep))

    def roots(self) -> list[Tensor]:
        return [t for t in (self.output, self.slope, *self.transposed) if t is not None]


KINDS: dict[str, type[Recorded]] = {"hessian": Hessian, "ggn": GaussNewton}


def saved_bytes(roots: Sequence[Tensor], others: Sequence[Tensor]) -> int:
    """Memory of all tensors saved in the graphs behind `roots`, each storage counted once, those of `others` not."""
    seen: set[object] = set()
    storages: dict[int, int] = {}
    known = {t.untyped_storage().data_ptr() for t in others}
    stack = [t.grad_fn for t in roots]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        stack += [following for following, _ in node.next_functions]
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


_names_of: dict[str, list[str]] = {}


def _saved_names(kind: str, node) -> list[str]:
    """Names of what a kind of node saves; there are few kinds, and a node has many names."""
    if kind not in _names_of:
        _names_of[kind] = [name for name in dir(node) if name.startswith("_saved_")]
    return _names_of[kind]


@contextmanager
def _differentiable_attention() -> Iterator[None]:
    """Attention by plain products, the only implementation that is differentiable twice."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
