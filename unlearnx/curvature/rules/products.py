"""Products of tensors of which one is a parameter: matmul, einsum, and what is made of them."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearnx.curvature.composed import Product
from unlearnx.curvature.contributions import Contribution, LinearWeight, StoredGradients, position_sums
from unlearnx.curvature.places import Place
from unlearnx.curvature.rules.registry import Parts, Recorder, Rule, rule_of

SAMPLE = "Z"  # letter of the samples in equations
BROADCAST = "1"  # in place of a letter, for a dimension of size 1 where other factors have more
MAX_DIMENSIONS = 10  # of a tensor


class ProductRule(Rule):
    """A product as ``torch.einsum`` sees it."""

    def factors(self) -> tuple[list[str], str, list[Tensor]] | None:
        """Letters of every factor and of the result, and the factors; None where there are none."""
        raise NotImplementedError

    def value(self) -> Tensor:
        """The result."""
        raise NotImplementedError

    def added(self) -> tuple[Tensor | None, float, float]:
        """A bias along the last dimension, its factor, and that of the product."""
        return None, 1.0, 1.0

    def watched(self, tape: Recorder) -> Any:
        found = self.factors()
        bias, beta, alpha = self.added()
        if found is None or (bias is not None and bias.dim() != 1):
            return NotImplemented
        letters, result, factors = found
        weights = [i for i, t in enumerate(factors) if tape.is_weight(t)]
        if len(weights) > 1 or (bias is not None and beta == 0):
            return NotImplemented
        product = _BySample.of(tape, letters, result, factors)
        if product is None or (weights and product.letter in letters[weights[0]]):
            return NotImplemented
        weight = factors[weights[0]] if weights else None
        output = self.value()

        def contributions(dy: Tensor) -> Parts:
            by_sample = product.first(dy, result)
            if weight is not None:
                scaled = by_sample if alpha == 1 else by_sample * alpha
                yield weight, product.of_weight(weights[0], scaled, weight.shape)
            if bias is not None:
                rows = position_sums(by_sample)
                yield bias, StoredGradients(rows if beta == 1 else rows * beta)

        return tape.watch(output, (weight, bias), contributions)


@dataclass
class _BySample:
    """A product whose factors have their samples at the letter `letter`.

    Where positions are in the same dimension, it becomes two.
    """

    letters: list[str]
    result: str
    factors: list[Tensor]  # detached
    letter: str
    place: Place  # there, whatever the dimension
    samples: int

    @classmethod
    def of(cls, tape: Recorder, letters: list[str], result: str, factors: list[Tensor]) -> _BySample | None:
        """None where the samples are not all at one letter, which the result must have."""
        found = set()
        for own, t in zip(letters, factors, strict=True):
            place = None if tape.is_weight(t) else tape.place(t)
            if place is not None:
                found.add((own[place.axis], replace(place, axis=0)))
            elif not tape.is_constant(t):
                return None
        if len(found) != 1:
            return None
        ((letter, where),) = found
        if letter not in result:
            return None
        squeezed = [
            t.detach().squeeze([i for i, c in enumerate(own) if c == BROADCAST])
            for own, t in zip(letters, factors, strict=True)
        ]
        kept = [own.replace(BROADCAST, "") for own in letters]
        return cls(kept, result, squeezed, letter, where, tape.samples)

    def first(self, t: Tensor, letters: str) -> Tensor:
        """A tensor with these letters as (N, ...)."""
        return replace(self.place, axis=letters.index(self.letter)).first(t, self.samples)

    def letters_after(self, letters: str) -> str:
        """The letters of :meth:`first` after that of the samples."""
        rest = letters.replace(self.letter, "")
        at = letters.index(self.letter)
        return rest[:at] + self.letter + rest[at:] if self.place.folded else rest

    def of_weight(self, index: int, dy: Tensor, shape: torch.Size) -> Contribution:
        """The contribution to the gradients of a factor of this shape, for dy (N, ...)."""
        own = self.letters[index]
        others = [i for i in range(len(self.factors)) if i != index]
        out = self.letters_after(self.result)
        if len(others) == 1 and self.letter in self.letters[others[0]] and len(own) == len(shape) == 2:
            x, into = self.factors[others[0]], self.letters_after(self.letters[others[0]])
            linear = _as_linear(own, into, out, self.first(x, self.letters[others[0]]).to(dy.dtype), dy)
            if linear is not None:
                return linear
        factors, by_sample, letters = [], [], [SAMPLE + out]
        for i in others:
            t, has = self.factors[i].to(dy.dtype), self.letter in self.letters[i]
            factors.append(self.first(t, self.letters[i]) if has else t)
            by_sample.append(has)
            letters.append(SAMPLE + self.letters_after(self.letters[i]) if has else self.letters[i])
        return Product(dy, factors, by_sample, f"{','.join(letters)}->{SAMPLE}{own}", shape)


def _as_linear(own: str, into: str, out: str, x: Tensor, dy: Tensor) -> LinearWeight | None:
    """The gradient of a matrix, all of whose letters are summed over or new in the result."""
    new, summed = [c for c in own if c not in into], [c for c in own if c not in out]
    if len(new) != 1 or len(summed) != 1 or new == summed:
        return None
    positions = [c for c in into if c != summed[0]]
    if sorted(positions) != sorted(c for c in out if c != new[0]):
        return None

    def ordered(t: Tensor, letters: str, last: str) -> Tensor:
        return t.permute(0, *(1 + letters.index(c) for c in (*positions, last)))

    x, dy = ordered(x, into, summed[0]), ordered(dy, out, new[0])
    return LinearWeight(x, dy) if own == new[0] + summed[0] else LinearWeight(dy, x)


@rule_of(
    torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm, torch.mv, Tensor.mv
)
@dataclass
class Matmul(ProductRule):
    """``torch.matmul``."""

    input: Tensor
    other: Tensor

    def value(self):
        return torch.matmul(self.input, self.other)

    def factors(self):
        return _matmul_letters(self.input, self.other)


@rule_of(Tensor.__rmatmul__)
@dataclass
class ReflectedMatmul(Matmul):
    """``other @ input``."""

    def __post_init__(self) -> None:
        self.input, self.other = self.other, self.input


@rule_of(torch.addmm, Tensor.addmm, torch.addmv, Tensor.addmv)
@dataclass
class Addmm(ProductRule):
    """``torch.addmm``, as of the Conv1D of GPT-2."""

    input: Tensor
    mat1: Tensor
    mat2: Tensor
    beta: float = 1
    alpha: float = 1

    def value(self):
        product = torch.addmm if self.mat2.dim() == 2 else torch.addmv
        return product(self.input, self.mat1, self.mat2, beta=self.beta, alpha=self.alpha)

    def added(self):
        return self.input, self.beta, self.alpha

    def factors(self):
        return _matmul_letters(self.mat1, self.mat2) if self.mat2.dim() == 2 else None


@rule_of(torch.einsum)
class Einsum(ProductRule):
    """``torch.einsum``."""

    def __init__(self, equation: Any, *operands: Any):
        self.equation = equation
        self.operands = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], (tuple, list)) else operands

    def value(self):
        return torch.einsum(self.equation, *self.operands)

    def factors(self):
        operands = [t for t in self.operands if isinstance(t, Tensor)]
        if not isinstance(self.equation, str) or len(operands) != len(self.operands):
            return None
        if set(self.equation) & {SAMPLE, *(DOTS if "..." in self.equation else "")}:
            return None
        given, arrow, result = self.equation.replace(" ", "").partition("->")
        letters = [_without_dots(own, t.dim()) for own, t in zip(given.split(","), operands, strict=True)]
        if not arrow:
            once = sorted(c for c in set(given) if c.isalpha() and given.count(c) == 1)
            result = ("..." if "..." in given else "") + "".join(once)
        longest = max(t.dim() - len(own.replace("...", "")) for own, t in zip(given.split(","), operands, strict=True))
        result = result.replace("...", DOTS[MAX_DIMENSIONS - longest :])
        if any(len(set(own)) < len(own) for own in (*letters, result)):  # a diagonal
            return None
        return _without_broadcast(letters, result, operands)


@rule_of(F.bilinear)
@dataclass
class Bilinear(ProductRule):
    """``F.bilinear``."""

    input1: Tensor
    input2: Tensor
    weight: Tensor
    bias: Tensor | None = None

    def value(self):
        return F.bilinear(self.input1, self.input2, self.weight, self.bias)

    def added(self):
        return self.bias, 1.0, 1.0

    def factors(self):
        batch = DOTS[: self.input1.dim() - 1]
        return [batch + "i", batch + "j", "oij"], batch + "o", [self.input1, self.input2, self.weight]


DOTS = string.ascii_uppercase[:MAX_DIMENSIONS]  # letters for the dimensions that ... stands for


def _without_dots(letters: str, dims: int) -> str:
    hidden = dims - len(letters.replace("...", ""))
    return letters.replace("...", DOTS[MAX_DIMENSIONS - hidden :])


def _matmul_letters(a: Tensor, b: Tensor) -> tuple[list[str], str, list[Tensor]] | None:
    if a.dim() == 0 or b.dim() == 0:
        return None
    batch_a, batch_b = DOTS[MAX_DIMENSIONS - max(0, a.dim() - 2) :], DOTS[MAX_DIMENSIONS - max(0, b.dim() - 2) :]
    own = "i" if a.dim() > 1 else ""
    other = "j" if b.dim() > 1 else ""
    longest = max(batch_a, batch_b, key=len)
    return _without_broadcast([f"{batch_a}{own}k", f"{batch_b}k{other}"], longest + own + other, [a, b])


def _without_broadcast(
    letters: Sequence[str], result: str, factors: Sequence[Tensor]
) -> tuple[list[str], str, list[Tensor]]:
    """The same with dimensions marked that broadcast."""
    sizes: dict[str, int] = {}
    for own, t in zip(letters, factors, strict=True):
        for c, size in zip(own, t.shape, strict=True):
            sizes[c] = max(sizes.get(c, 1), size)
    marked = [
        "".join(c if size == sizes[c] else BROADCAST for c, size in zip(own, t.shape, strict=True))
        for own, t in zip(letters, factors, strict=True)
    ]
    return marked, result, list(factors)
