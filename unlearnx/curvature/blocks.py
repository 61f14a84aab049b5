"""Large tensors worked on in parts that stay in the CPU's caches: what is computed in between takes no memory."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

BLOCK_BYTES = 1 << 20  # of a tensor that is worked on at once


def blocks(t: Tensor) -> Iterator[tuple[slice, ...]]:
    """Indices of parts of a tensor (..., D) that have about BLOCK_BYTES, but all D of a position."""
    row = t[0].nbytes if len(t) else 0
    if row > BLOCK_BYTES and t.dim() > 2:
        for k in range(len(t)):
            yield from ((slice(k, k + 1), *rest) for rest in blocks(t[k]))
        return
    step = max(1, BLOCK_BYTES // max(1, row))
    for start in range(0, len(t), step):
        yield (slice(start, start + step),)
