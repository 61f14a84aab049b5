"""Contributions made of others: of views of a parameter, of uses of different kinds, of products in general."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from unlearnx.curvature.contributions import (
    CACHED_GRADIENT_BYTES,
    Contribution,
    EmbeddingWeight,
    LinearWeight,
    StoredGradients,
)
from unlearnx.ops._dtypes import compute_dtype


def join(parts: Sequence[Contribution], shape: torch.Size) -> Contribution:
    """All uses of a parameter of this shape as one contribution."""
    if len(parts) == 1:
        return parts[0]
    kinds: dict[type[Contribution], list[Contribution]] = {}
    for part in parts:
        kinds.setdefault(type(part), []).append(part)
    joined: list[Contribution] = []
    for kind, same in kinds.items():
        one = kind.join(same)
        joined += same if one is None else [one]
    if len(joined) == 1:
        return joined[0]
    if len(joined) == 2:
        first, second = sorted(joined, key=lambda part: type(part).__name__)
        if isinstance(first, EmbeddingWeight) and isinstance(second, LinearWeight):
            return TiedWeight(first, second)
    return Added(joined, shape)


class Stored(Contribution):
    """Gradients that have to be stored to be used: a few samples at a time."""

    shape: torch.Size  # of the parameter

    def rows(self, s: slice) -> Tensor:
        """The gradients of the samples in a slice, (n, *shape)."""
        raise NotImplementedError

    def take(self, s: slice) -> StoredGradients:
        rows = self.rows(s)
        return StoredGradients(rows.to(compute_dtype(rows)))

    def form(self) -> tuple[Any, ...]:
        return (object(),)  # equal to no other

    def squares(self, weight: Tensor | None) -> Tensor:
        return _total(part.squares(None if weight is None else weight[s]) for s, part in self._parts())

    def weighted_sum(self, weight: Tensor) -> Tensor:
        return _total(part.weighted_sum(weight[s]) for s, part in self._parts())

    def dots(self, v: Tensor) -> Tensor:
        return torch.cat([part.dots(v) for _, part in self._parts()], 1)

    def per_sample(self, new: Contribution | None = None) -> Tensor:
        own = self.take(slice(0, self.samples)).values
        return own if new is None else new.per_sample() - own

    def _parts(self) -> Iterator[tuple[slice, StoredGradients]]:
        n = max(1, CACHED_GRADIENT_BYTES // (4 * max(1, self.shape.numel())))
        for start in range(0, self.samples, n):
            s = slice(start, min(self.samples, start + n))
            yield s, self.take(s)


@dataclass
class Pulled(Stored):
    """Gradients of a weight, taken on to those of a parameter that it is made of."""

    inner: Contribution
    shape: torch.Size
    pull: Callable[[Tensor], Tensor]  # from (n, *shape of the weight) to (n, *shape)

    @property
    def samples(self) -> int:
        return self.inner.samples

    def rows(self, s: slice) -> Tensor:
        return self.pull(self.inner.take(s).per_sample())


@dataclass
class Added(Stored):
    """The sum of contributions of any kind."""

    parts: list[Contribution]
    shape: torch.Size

    @property
    def samples(self) -> int:
        return self.parts[0].samples

    def rows(self, s: slice) -> Tensor:
        each = (part.take(s).per_sample() for part in self.parts)
        return _total(t.to(compute_dtype(t), copy=True) for t in each)


@dataclass
class Product(Stored):
    """A weight in a product of tensors: its gradients are products of the others with dy.

    Args:
        dy: (N, ...).
        others: the other factors, (N, ...) where they have samples.
        by_sample: which of the others have.
        equation: of ``torch.einsum``, for dy and the others, to the weight's dimensions after those of the samples.
        shape: of the weight.
    """

    dy: Tensor
    others: list[Tensor]
    by_sample: list[bool]
    equation: str
    shape: torch.Size

    def rows(self, s: slice) -> Tensor:
        others = [t[s] if own else t for t, own in zip(self.others, self.by_sample, strict=True)]
        rows = torch.einsum(self.equation, self.dy[s], *others)
        return rows.reshape(len(rows), *self.shape)


@dataclass
class Viewed(Contribution):
    """A parameter that is used in another shape."""

    inner: Contribution
    used_as: torch.Size
    shape: torch.Size  # of the parameter

    @classmethod
    def join(cls, parts: Sequence[Viewed]) -> Viewed | None:
        first = parts[0]
        if any(p.used_as != first.used_as for p in parts):
            return None
        return replace(first, inner=join([p.inner for p in parts], first.used_as))

    @property
    def samples(self) -> int:
        return self.inner.samples

    def take(self, s: slice) -> Viewed:
        return replace(self, inner=self.inner.take(s))

    def form(self) -> tuple[Any, ...]:
        return Viewed, self.used_as, *self.inner.form()

    def squares(self, weight: Tensor | None) -> Tensor:
        return self.inner.squares(weight).reshape(self.shape)

    def weighted_sum(self, weight: Tensor) -> Tensor:
        return self.inner.weighted_sum(weight).reshape(self.shape)

    def dots(self, v: Tensor) -> Tensor:
        return self.inner.dots(v.reshape(len(v), *self.used_as))

    def per_sample(self, new: Viewed | None = None) -> Tensor:
        rows = self.inner.per_sample(None if new is None else new.inner)
        return rows.reshape(len(rows), *self.shape)


Rows = tuple[int, int]  # first, and the one after the last


@dataclass
class RowBlocks(Contribution):
    """Contributions to blocks of a parameter's rows, as to those of a packed projection."""

    blocks: dict[Rows, Contribution]
    shape: torch.Size

    @classmethod
    def join(cls, parts: Sequence[RowBlocks]) -> RowBlocks | None:
        found: dict[Rows, list[Contribution]] = {}
        for part in parts:
            for rows, block in part.blocks.items():
                found.setdefault(rows, []).append(block)
        order, width = sorted(found), parts[0].shape[1:]
        if any(a[1] > b[0] for a, b in pairwise(order)):
            return None
        joined = {(a, b): join(blocks, torch.Size([b - a, *width])) for (a, b), blocks in found.items()}
        return cls(joined, parts[0].shape)

    @property
    def samples(self) -> int:
        return next(iter(self.blocks.values())).samples

    def take(self, s: slice) -> RowBlocks:
        return replace(self, blocks={rows: block.take(s) for rows, block in self.blocks.items()})

    def form(self) -> tuple[Any, ...]:
        return RowBlocks, *((rows, *block.form()) for rows, block in sorted(self.blocks.items()))

    def squares(self, weight: Tensor | None) -> Tensor:
        return self._whole({rows: block.squares(weight) for rows, block in self.blocks.items()}, 0)

    def weighted_sum(self, weight: Tensor) -> Tensor:
        return self._whole({rows: block.weighted_sum(weight) for rows, block in self.blocks.items()}, 0)

    def dots(self, v: Tensor) -> Tensor:
        return _total(block.dots(v[:, a:b].contiguous()) for (a, b), block in self.blocks.items())

    def per_sample(self, new: RowBlocks | None = None) -> Tensor:
        others: dict[Rows, Any] = dict.fromkeys(self.blocks) if new is None else dict(new.blocks)
        return self._whole({rows: block.per_sample(others[rows]) for rows, block in self.blocks.items()}, 1)

    def _whole(self, parts: dict[Rows, Tensor], axis: int) -> Tensor:
        """One tensor, of whose dimension `axis` the parts are the given rows, and zero elsewhere."""
        first = next(iter(parts.values()))
        whole = first.new_zeros(*first.shape[:axis], *self.shape)
        for (a, b), part in parts.items():
            whole.narrow(axis, a, b - a).copy_(part)
        return whole


@dataclass
class TiedWeight(Contribution):
    """A weight that embeds tokens and decodes into them: ``(e + l)^2 = l^2 + e^2 + 2 e l``.

    Only the rows of a sample's own tokens have an e, so that the mixed term costs positions x positions x features a
    sample, and no gradient of the decoder is stored.
    """

    embedding: EmbeddingWeight
    decoder: LinearWeight

    @property
    def samples(self) -> int:
        return self.decoder.samples

    def take(self, s: slice) -> TiedWeight:
        return replace(self, embedding=self.embedding.take(s), decoder=self.decoder.take(s))

    def form(self) -> tuple[Any, ...]:
        return TiedWeight, *self.embedding.form(), *self.decoder.form()

    def squares(self, weight: Tensor | None) -> Tensor:
        total = self.decoder.squares(weight)
        total += self.embedding.squares(weight)
        tokens, e = self.embedding.x.reshape(self.samples, -1), self.embedding.dy
        e = e.reshape(*tokens.shape, -1)
        dy, x = (t.reshape(len(t), -1, t.shape[-1]) for t in (self.decoder.dy, self.decoder.x))
        at_tokens = dy.gather(2, tokens[:, None].expand(-1, dy.shape[1], -1).long())
        mixed = (at_tokens.to(total.dtype).mT @ x.to(total.dtype)).mul_(e).mul_(2)
        if self.embedding.padding_idx is not None:
            mixed.masked_fill_((tokens == self.embedding.padding_idx)[..., None], 0)
        if weight is not None:
            mixed *= weight.to(total.dtype)[:, None, None]
        total.index_add_(0, tokens.reshape(-1), mixed.flatten(0, 1))
        return total.clamp_(min=0) if weight is None else total  # rounding may leave less than nothing

    def weighted_sum(self, weight: Tensor) -> Tensor:
        return self.decoder.weighted_sum(weight) + self.embedding.weighted_sum(weight)

    def dots(self, v: Tensor) -> Tensor:
        return self.decoder.dots(v) + self.embedding.dots(v)

    def per_sample(self, new: TiedWeight | None = None) -> Tensor:
        if new is None:
            return self.decoder.per_sample() + self.embedding.per_sample()
        return self.decoder.per_sample(new.decoder) + self.embedding.per_sample(new.embedding)


def _total(values: Iterable[Tensor]) -> Tensor:
    """The sum, added up in the first."""
    each = iter(values)
    total = next(each)
    for value in each:
        total += value
    return total
