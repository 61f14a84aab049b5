"""Images as training sees them: moved by a few pixels, every other one in a mirror."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from unlearnx._arguments import checked
from unlearnx._batches import Nest
from unlearnx._checks import check_at_least_zero
from unlearnx._data import Data, as_dataset
from unlearnx._known_labels import known_labels
from unlearnx._pairs import Pair
from unlearnx._sources import Changed

PARTS = 8  # of a batch, each moved as one


class _Augmented(Changed):
    """Tells its labels where the dataset does, so that none are read by making images."""

    def __init__(self, dataset: Dataset[Any], pad: int):
        super().__init__(dataset, lambda x, y, index: _seen(x, y, pad))
        self.labels = known_labels(dataset)


@checked
def augmented(data: Data, pad: int = 2) -> Dataset[Any]:
    """The same images (N, C, H, W), each time they are read moved by up to `pad` pixels, half of them in a mirror.

    What a batch needs at its edges is reflected; each eighth of it is moved as one. Random numbers are torch's own.

    Args:
        data: images and their labels.
        pad: pixels in either direction.

    Raises:
        ValueError: `pad` is negative, or samples are no images.

    Example:
        >>> images = torch.arange(16.0).view(1, 1, 4, 4)
        >>> x, y = augmented((images, torch.tensor([3])), pad=1)[0]
        >>> x.shape, y, bool((x != images[0]).any())
        (torch.Size([1, 4, 4]), tensor(3), True)
    """
    check_at_least_zero(pad=pad)
    return _Augmented(as_dataset(data), pad)


def _seen(x: Nest, y: Nest, pad: int) -> Pair:
    if not isinstance(x, Tensor) or x.dim() != 4:
        what = f"shape {list(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
        raise ValueError(f"data: has a batch of {what}, expected images (N, C, H, W)")
    x = torch.where((torch.rand(len(x)) < 0.5).to(x.device).view(-1, 1, 1, 1), x.flip(3), x)
    height, width = x.shape[2:]
    parts = []
    for part in F.pad(x, (pad,) * 4, mode="reflect").chunk(PARTS):
        row, column = torch.randint(2 * pad + 1, (2,)).tolist()
        parts.append(part[..., row : row + height, column : column + width])
    return torch.cat(parts), y
