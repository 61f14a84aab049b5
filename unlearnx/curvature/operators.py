"""Products with the curvature of a model's mean loss."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from unlearnx._checks import Params, check_deterministic, check_finite, model_device, select_params
from unlearnx._data import BATCH_SIZE, Data, materialize
from unlearnx._losses import Loss, SampleLoss
from unlearnx._vectors import Vector, added, check_like, dot, norm, scaled
from unlearnx.curvature.prefix import FrozenPrefix
from unlearnx.curvature.samples import split_values

KINDS = ("hessian", "ggn")


@contextmanager
def _differentiable_attention() -> Iterator[None]:
    """Attention by plain products, the only implementation that is differentiable twice and forward."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class CurvatureOperator:
    """The matrix ``C + damping * I``, C being the curvature of the mean per-sample loss over the data.

    Args:
        model: in eval mode, or without layers that mix samples. Its parameters are read when a product is taken.
        loss_fn: ``loss_fn(output, y)``: losses per sample, their mean or their sum.
        data: pairs (x, y): tensors, a Dataset or a DataLoader.
        kind: ``"hessian"``, or ``"ggn"`` for the generalised Gauss-Newton matrix, which has no negative
            eigenvalues where the loss is convex in the output.
        damping: multiple of the identity to add, >= 0.
        params: names of the parameters, ``"last:K"``, or None for all that require gradients. The part of the
            model before them runs once, here.
        batch_size: samples a pass; products do not depend on it.

    Raises:
        ValueError: an unknown kind, a negative damping, a batch size below 1, empty data or samples that interact.

    Source: Pearlmutter, "Fast exact multiplication by the Hessian", 1994; Schraudolph, "Fast curvature
    matrix-vector products for second-order gradient descent", 2002.

    Example:
        >>> model, x, y = torch.nn.Linear(3, 2), torch.randn(8, 3), torch.randint(2, (8,))
        >>> operator = CurvatureOperator(model, torch.nn.functional.cross_entropy, (x, y), kind="ggn")
        >>> product = operator.matvec({k: torch.ones_like(p) for k, p in model.named_parameters()})
        >>> product["weight"].shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Loss,
        data: Data,
        *,
        kind: str = "ggn",
        damping: float = 0.0,
        params: Params = None,
        batch_size: int | None = None,
    ):
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
        if not damping >= 0:
            raise ValueError(f"damping is {damping}, expected a number >= 0")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        check_deterministic(model)
        self.kind, self.damping, self.batch_size = kind, damping, batch_size or BATCH_SIZE
        self.names = select_params(model, params)
        self._evaluations = [0]  # shared with the operators of mini-batches
        cut = FrozenPrefix(model, self.names, data)
        self.model, self.loss = cut.head, SampleLoss(loss_fn)
        self.x, self.y = materialize(cut.features(data, batch_size=batch_size))

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.x)

    @property
    def evaluations(self) -> int:
        """Samples in all products so far, those of its mini-batches included."""
        return self._evaluations[0]

    def matvec(self, v: Vector) -> Vector:
        """Product with `v`, a tensor for each parameter.

        Raises:
            ValueError: keys or shapes are not those of the parameters.
        """
        values, rest = split_values(self.model, self.names)
        check_like("v", v, values)
        total = {name: torch.zeros_like(p) for name, p in values.items()}
        self._evaluations[0] += len(self)
        product = self._ggn if self.kind == "ggn" else self._hessian
        device = model_device(self.model)
        with _differentiable_attention():
            for start in range(0, len(self), self.batch_size):
                s = slice(start, start + self.batch_size)
                for name, part in product(values, rest, v, self.x[s].to(device), self.y[s].to(device)).items():
                    total[name] += part
        return {name: t.div_(len(self)).add_(v[name], alpha=self.damping) for name, t in total.items()}

    def _hessian(self, values: Vector, rest: Vector, v: Vector, x: Tensor, y: Tensor) -> Vector:
        leaves = {name: p.requires_grad_() for name, p in values.items()}
        with torch.enable_grad():
            objective = self.loss.total(functional_call(self.model, (leaves, rest), (x,)), y)
            gradient = torch.autograd.grad(objective, list(leaves.values()), create_graph=True, materialize_grads=True)
            directional = dot(dict(zip(leaves, gradient, strict=True)), v)
            if not directional.requires_grad:  # a loss that is linear in the parameters
                return {name: torch.zeros_like(p) for name, p in values.items()}
            product = torch.autograd.grad(directional, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, product, strict=True))

    def _ggn(self, values: Vector, rest: Vector, v: Vector, x: Tensor, y: Tensor) -> Vector:
        leaves = {name: p.requires_grad_() for name, p in values.items()}
        # One forward pass carries the tangent and leaves the graph that the backward pass needs.
        with torch.enable_grad(), forward_ad.dual_level():
            duals = {name: forward_ad.make_dual(p, v[name]) for name, p in leaves.items()}
            output, tangent = forward_ad.unpack_dual(functional_call(self.model, (duals, rest), (x,)))
        if tangent is None:  # an output that does not depend on the parameters
            return {name: torch.zeros_like(p) for name, p in values.items()}
        direction = self._loss_hessian(output.detach(), y, tangent.detach())
        product = torch.autograd.grad(output, list(leaves.values()), direction, materialize_grads=True)
        return dict(zip(leaves, product, strict=True))

    def _loss_hessian(self, output: Tensor, y: Tensor, tangent: Tensor) -> Tensor:
        leaf = output.requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.loss.total(leaf, y), leaf, create_graph=True)
            if not gradient.requires_grad:  # a loss that is linear in the output
                return torch.zeros_like(output)
            return torch.autograd.grad(gradient, leaf, tangent)[0]

    def minibatches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[CurvatureOperator]:
        """Operators of consecutive batches of one random order of the data, over and over, without end."""
        order = torch.randperm(len(self), generator=generator).to(self.x.device)
        for start in itertools.cycle(range(0, len(self), batch_size)):
            part = copy.copy(self)
            index = order[start : start + batch_size]
            part.x, part.y = self.x[index], self.y[index]
            yield part

    def top_eigenvalue(
        self, *, iterations: int = 50, tolerance: float = 1e-2, generator: torch.Generator | None = None
    ) -> float:
        """Largest eigenvalue, by power iteration until it changes by less than `tolerance`, relative.

        Approached from below. Where the eigenvalue of largest modulus is negative, the iteration runs again on
        the operator shifted by it.

        Raises:
            ValueError: a product is not finite.
        """
        value = self._power_iteration(0.0, iterations, tolerance, generator)
        return value if value >= 0 else self._power_iteration(-value, iterations, tolerance, generator)

    def _power_iteration(
        self, shift: float, iterations: int, tolerance: float, generator: torch.Generator | None
    ) -> float:
        values, _ = split_values(self.model, self.names)
        v = {k: torch.randn(p.shape, generator=generator).to(p) for k, p in values.items()}
        eigenvalue = 0.0
        for _ in range(iterations):
            v = scaled(v, 1 / norm(v))
            product = added(self.matvec(v), v, shift)
            check_finite("curvature product", product.items())
            previous, eigenvalue = eigenvalue, float(dot(v, product))
            if abs(eigenvalue - previous) <= tolerance * abs(eigenvalue):
                break
            v = product
        return eigenvalue - shift
