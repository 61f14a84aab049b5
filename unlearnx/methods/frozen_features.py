"""Requests on the outputs of a frozen prefix, in the place of the samples that go into it."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from unlearnx._batches import joined, replaced
from unlearnx._data import Data, as_dataset, batches, dataset_of, materialize, size
from unlearnx._sources import Samples
from unlearnx.curvature.prefix import FrozenPrefix
from unlearnx.methods.request import Request


def request_on_features(
    request: Request,
    frozen_prefix: FrozenPrefix,
    *,
    features: Data | None = None,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
) -> Request:
    """The same request with the outputs of `frozen_prefix` as inputs; unchanged samples are computed once.

    Args:
        features: those of the request's dataset, where they are known already.
        batch_size, dtype: as for :meth:`unlearnx.curvature.FrozenPrefix.features`.
    """
    if frozen_prefix.prefix is None:
        return request
    settings: dict[str, Any] = {"batch_size": batch_size, "dtype": dtype}
    known = as_dataset(frozen_prefix.features(request.dataset, **settings) if features is None else features)
    augmented = None if request.augmented is None else frozen_prefix.live(request.augmented, dtype=dtype)
    correction = request.correction
    if correction is None:
        held_out = None
        if request.held_out is not None and not request.has_retain_set:  # it then stands for what stays
            held_out = as_dataset(frozen_prefix.features(request.held_out, **settings))
        return Request(known, request.forget, augmented=augmented, held_out=held_out)
    corrected: Dataset[Any]
    if request.labels_only and Samples(known).in_memory:
        x, y = materialize(known)
        corrected = dataset_of(x, replaced(y, request.forget, joined([label for _, label in batches(correction)])))
    else:
        changed = frozen_prefix.features(correction, **settings)
        n, chosen = size(known), torch.arange(size(known))
        chosen[request.forget] = n + torch.arange(len(request.forget))
        corrected = Subset(ConcatDataset([known, as_dataset(changed)]), chosen.tolist())
    return Request(known, request.forget, corrected, request.labels_only, augmented)
