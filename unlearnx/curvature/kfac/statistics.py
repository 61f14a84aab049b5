"""What a pass over the data adds up for each layer: first its covariances, then the eigenvalues in their eigenbasis."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unlearnx.curvature.contributions import ConvolutionWeight, EmbeddingWeight, LinearWeight
from unlearnx.curvature.kfac.gram import add_gram_, add_patch_gram_, mirror_, patch_sums, patches_pay_off
from unlearnx.curvature.kfac.layers import EmbeddingLayer, Layer
from unlearnx.ops._dtypes import compute_dtype
from unlearnx.ops.embedding_grad import embedding_grad_sq
from unlearnx.ops.linear_grad import linear_grad_sq

APPROXIMATIONS = ("expand", "reduce")


class Covariances:
    """Sums of ``x x^T`` over the counted positions of a layer, and of ``dy dy^T`` over those of its samples.

    A position counts where it has a say in the loss: in a sequence, where its output gradient is not zero throughout,
    which leaves out padding and what follows the last label; elsewhere, where its sample has a label.

    Args:
        layer: the layer.
        approximation: ``"expand"`` takes every position of a sequence or image for a sample of its own, ``"reduce"``
            averages x and sums dy over them first. Embeddings are always expanded, so that x x^T is diagonal.
        like: the layer's weight.

    Attributes:
        inputs: (I, I); of an embedding, the tokens' counts (I,). Stacked as the layer says.
        outputs: (O, O).
        counted: number of positions.
    """

    def __init__(self, layer: Layer, approximation: str, like: Tensor):
        o, i = layer.size
        self.layer, self._reduce = layer, approximation == "reduce"
        shape = (i,) if isinstance(layer, EmbeddingLayer) else (*layer.stacked_inputs, i, i)
        self.inputs = torch.zeros(shape, dtype=compute_dtype(like), device=like.device)
        self.outputs = torch.zeros(*layer.stacked, o, o, dtype=compute_dtype(like), device=like.device)
        self.counted = torch.zeros((), dtype=torch.float64, device=like.device)

    def add(self, contribution: Any, labelled: Tensor | None, weight: Tensor | None, *, inputs: bool) -> None:
        """Add the samples of a contribution.

        Args:
            contribution: to the gradients of the layer's weight.
            labelled: which samples have labels, (N,); None for all.
            weight: factors of the samples' squared gradients, (N,); None for ones.
            inputs: whether x is to be counted, which it is once where several passes follow for the same samples.
        """
        if isinstance(contribution, EmbeddingWeight):
            self._add_embedding(contribution, weight, inputs)
            return
        if isinstance(contribution, ConvolutionWeight) and not self._reduce and sees_every_pixel(contribution):
            self._add_images(contribution, labelled, weight, inputs)
            return
        sequence = isinstance(contribution, LinearWeight) and contribution.x[0, ..., 0].numel() > 1
        for s, x, dy in self.layer.rows(contribution):
            counted = (dy != 0).any(-1) if sequence else None
            if counted is not None and counted.dim() > 2:
                counted = counted.any(0)
            if counted is None and labelled is not None:
                counted = labelled[s, None].expand(dy.shape[-3:-1])
            if self._reduce and dy.shape[-2] > 1:
                x, counted = _mean_of_counted(x, counted)
                dy = dy.sum(-2, keepdim=True)
            if inputs:
                self._add_inputs(x.flatten(-3, -2) if counted is None or counted.all() else x[..., counted, :])
            if weight is not None:
                dy = dy * weight[s, None, None].to(dy).sqrt()
            add_gram_(self.outputs, dy.flatten(-3, -2))

    def _add_inputs(self, rows: Tensor) -> None:
        i = rows.shape[-1]
        add_gram_(self.inputs[..., :i, :i], rows)
        self._add_ones(rows.sum(-2), rows.shape[-2])

    def _add_images(
        self, contribution: ConvolutionWeight, labelled: Tensor | None, weight: Tensor | None, inputs: bool
    ) -> None:
        x, dy = (t.to(self.outputs.dtype) for t in contribution.images())
        if inputs:
            counted, window = x if labelled is None else x[labelled], contribution.window()
            i = self.layer.shape[1:].numel()
            add_patch_gram_(self.inputs[:i, :i], counted, window)
            self._add_ones(patch_sums(counted, window), len(counted) * dy[0, 0].numel())
        if weight is not None:
            dy = dy * weight[:, None, None, None].to(dy).sqrt()
        add_gram_(self.outputs, dy.movedim(1, -1).flatten(0, 2))

    def _add_ones(self, sums: Tensor, count: int) -> None:
        """Add the products of the ones that stand for the bias with the sums of so many rows."""
        if self.layer.bias is not None:
            self.inputs[..., :-1, -1] += sums
            self.inputs[..., -1, -1] += count
        self.counted += count

    def _add_embedding(self, contribution: EmbeddingWeight, weight: Tensor | None, inputs: bool) -> None:
        n, d = len(contribution.x), contribution.dy.shape[-1]
        tokens, dy = contribution.x.reshape(n, -1), contribution.dy.reshape(n, -1, d).to(self.outputs.dtype)
        if contribution.padding_idx is not None:
            dy = dy.masked_fill((tokens == contribution.padding_idx)[..., None], 0)
        counted = (dy != 0).any(2)
        if inputs:
            self.inputs += torch.bincount(tokens[counted], minlength=contribution.tokens).to(self.inputs)
            self.counted += counted.sum()
        if weight is not None:
            dy = dy * weight[:, None, None].to(dy).sqrt()
        add_gram_(self.outputs, dy.flatten(0, 1))

    def finish(self) -> None:
        """Complete the sums once all samples are added: until then they are upper triangles."""
        mirror_(self.outputs)
        if self.inputs.dim() > 1:
            mirror_(self.inputs)

    def size(self) -> Tensor:
        """A number that is finite where both sums are."""
        inputs = self.inputs if self.inputs.dim() == 1 else self.inputs.diagonal(dim1=-2, dim2=-1)
        return inputs.sum(dtype=torch.float64) + self.outputs.diagonal(dim1=-2, dim2=-1).sum(dtype=torch.float64)


def sees_every_pixel(convolution: ConvolutionWeight) -> bool:
    """Whether the window goes around every pixel of images large enough for :func:`add_patch_gram_` to be faster."""
    settings, window = convolution.settings, convolution.window()
    images = convolution.images()[0].shape
    wanted = {"stride": (1, 1), "padding": tuple(size // 2 for size in window), "dilation": (1, 1), "groups": 1}
    around = all(settings[key] == value for key, value in wanted.items())
    return around and all(size % 2 for size in window) and patches_pay_off(images, window)


def _mean_of_counted(x: Tensor, counted: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Means (..., n, 1, I) of the counted rows of each sample, and which samples have any, (n, 1)."""
    if counted is None or counted.all():
        return x.mean(-2, keepdim=True), None
    total = counted.sum(1).clamp(min=1)
    return x.where(counted[..., None], 0).sum(-2, keepdim=True) / total[:, None, None], counted.any(1, keepdim=True)


def add_rotated_squares(
    total: Tensor, layer: Layer, bases: tuple[Tensor | None, Tensor], contribution: Any, weight: Tensor | None
) -> None:
    """Add to `total` (O, I) the squares of every sample's gradient in a basis, ``(U_out^T g_i U_in)^2``.

    Either the rows are rotated and the squares are those of a linear layer's gradients, which are not stored; or, where
    a sample has more positions than outputs, a few samples' gradients at a time, which are then the fewer rows.

    Args:
        total: what is added to.
        layer: the layer.
        bases: U_in (I, I), None for the identity, and U_out (O, O); stacked as the layer says.
        contribution: to the gradients of the layer's weight.
        weight: factors of the samples, (N,); None for ones.
    """
    into, out = bases
    if isinstance(contribution, EmbeddingWeight):
        dy = contribution.dy.to(out.dtype) @ out
        squares = embedding_grad_sq(
            contribution.x, dy, contribution.tokens, weight=weight, padding_idx=contribution.padding_idx
        )
        total += squares.mT
        return
    assert into is not None
    into = into.unsqueeze(-3) if layer.stacked_inputs else into
    out = out.unsqueeze(-3) if layer.stacked else out
    for s, x, dy in layer.rows(contribution):
        dy = dy @ out
        part = None if weight is None else weight[s].to(dy)
        if x.dim() < dy.dim():  # blocks of outputs with their inputs in common
            rotated = _rotated(x, into)
            for block, own in zip(total, dy, strict=True):
                block += linear_grad_sq(rotated, own, weight=part)
            continue
        if not layer.stacked and x.shape[1] == 1:
            squares = dy[:, 0].square()
            # The square of a product of one row each is the product of their squares.
            total.addmm_((squares if part is None else squares * part[:, None]).T, _rotated(x, into)[:, 0].square_())
            continue
        if not layer.stacked and x.shape[1] <= dy.shape[2]:
            total += linear_grad_sq(_rotated(x, into), dy, weight=part)
            continue
        gradients = dy.mT @ x
        if part is not None:
            gradients *= part.sqrt()[:, None, None]
            dy = dy * part.sqrt()[:, None, None]
        rotated = gradients @ into[..., : x.shape[-1], :]
        if layer.bias is not None:
            rotated += dy.sum(-2).unsqueeze(-1) * into[..., -1:, :]
        total += rotated.square_().sum(-3)


def _rotated(x: Tensor, basis: Tensor) -> Tensor:
    """``[x 1] basis``, or ``x basis`` where the basis has no row for the ones."""
    i = x.shape[2]
    if len(basis) == i:
        return x @ basis
    return torch.addmm(basis[i], x.flatten(0, 1), basis[:i]).view(*x.shape[:2], -1)
