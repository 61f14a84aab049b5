"""Products ``X^T X`` of tall matrices: half of each, in blocks; those of the patches of images without patches."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

COLUMNS = 256  # of a block: enough for the speed of a matrix product, few enough to leave out nearly half


def add_gram_(total: Tensor, rows: Tensor) -> None:
    """Add ``rows^T rows`` to the upper triangle of `total`; what is below it then means nothing.

    Both may be stacked along a first dimension.
    """
    for start in range(0, total.shape[-1], COLUMNS):
        part, block = rows[..., start : start + COLUMNS], total[..., start : start + COLUMNS, start:]
        (block.addmm_ if block.dim() == 2 else block.baddbmm_)(part.mT, rows[..., start:])


def mirror_(total: Tensor) -> None:
    """Copy the upper triangle to the lower one."""
    total.copy_(total.triu() + total.triu(1).mT)


def patches_pay_off(shape: torch.Size, window: tuple[int, int]) -> bool:
    """Whether :func:`add_patch_gram_` takes fewer products than the patches of images of `shape` (N, C, H, W)."""
    (h, w), (kh, kw) = shape[-2:], window
    shifts = ((2 * kh - 1) * (2 * kw - 1) + 1) / 2
    return shifts * (h + kh - 1) * (w + kw - 1) < (kh * kw) ** 2 / 2 * h * w


def add_patch_gram_(total: Tensor, x: Tensor, window: tuple[int, int]) -> None:
    """Add to the upper triangle of `total` the products ``X^T X`` of the patches X of images.

    The patches are those that an odd window sees around every pixel, beyond the margins zero, with channels fastest.
    Products of two of their pixels depend on where both are only through their distance, but for pixels at the margins:
    of 45 pairs of pixels in a window of 3 x 3, 13 products of whole images suffice, corrected at the margins.

    Args:
        total: (kh * kw * C, kh * kw * C).
        x: images (N, C, H, W).
        window: (kh, kw).
    """
    (kh, kw), c = window, x.shape[1]
    x = x.movedim(1, -1)
    flat = F.pad(x, (0, 0, kw // 2, kw // 2, kh // 2, kh // 2)).reshape(-1, c)
    width = x.shape[2] + kw - 1
    places = [(i, j) for i in range(kh) for j in range(kw)]
    for down, right in [(i, j) for i in range(kh) for j in range(1 - kw, kw) if i or j >= 0]:
        # A shift of the padded images that leaves its row or image meets the zeros of a margin.
        shift = down * width + right
        margins = _Margins(x, down, right)
        everywhere = flat[: len(flat) - shift].T @ flat[shift:]
        for k, (i, j) in enumerate(places):
            if i + down < kh and 0 <= j + right < kw:
                other = (i + down) * kw + j + right
                block = total[k * c : (k + 1) * c, other * c : (other + 1) * c]
                block += everywhere
                margins.subtract_from_(block, i - kh // 2, j - kw // 2)


class _Margins:
    """Sums of ``x[q] x[q + shift]^T`` over the pixels q at a margin, which a pixel of the window never sees."""

    def __init__(self, x: Tensor, down: int, right: int):
        self._x, self._down, self._right = x, down, right
        self._known: dict[tuple[int, int], Tensor | None] = {}

    def subtract_from_(self, block: Tensor, i: int, j: int) -> None:
        """Subtract the sums of the rows and columns that the window's pixel at (i, j) from its centre does not see."""
        terms = [(i, 0, -1)] * bool(i) + [(0, j, -1)] * bool(j) + [(i, j, 1)] * bool(i and j)
        for rows, columns, sign in terms:
            sums = self._sums(rows, columns)
            if sums is not None:
                block.add_(sums, alpha=sign)

    def _sums(self, i: int, j: int) -> Tensor | None:
        if (i, j) not in self._known:
            self._known[i, j] = self._product(_unseen(i, self._x.shape[1]), _unseen(j, self._x.shape[2]))
        return self._known[i, j]

    def _product(self, rows: slice, columns: slice) -> Tensor | None:
        _, h, w, c = self._x.shape
        top, bottom = rows.start, min(rows.stop, h - self._down)
        left, end = max(columns.start, -self._right), min(columns.stop, w - self._right)
        if top >= bottom or left >= end:
            return None
        here = self._x[:, top:bottom, left:end]
        there = self._x[:, top + self._down : bottom + self._down, left + self._right : end + self._right]
        return here.reshape(-1, c).T @ there.reshape(-1, c)


def _unseen(offset: int, size: int) -> slice:
    """Of pixels 0 to size - 1, those that the pixel of a window at this offset never sees; all for 0."""
    if offset >= 0:
        return slice(0, min(offset or size, size))
    return slice(max(size + offset, 0), size)


def patch_sums(x: Tensor, window: tuple[int, int]) -> Tensor:
    """The sums (kh * kw * C,) of the patches of :func:`add_patch_gram_`."""
    (kh, kw), (h, w) = window, x.shape[2:]
    pixels = x.sum(0)
    seen = [
        pixels[:, max(i, 0) : max(h + min(i, 0), 0), max(j, 0) : max(w + min(j, 0), 0)].sum((1, 2))
        for i in range(-(kh // 2), kh // 2 + 1)
        for j in range(-(kw // 2), kw // 2 + 1)
    ]
    return torch.cat(seen)
