"""Requests on the outputs of a frozen prefix, in the place of the samples that go into it."""

from __future__ import annotations

import torch

from unlearnx._batches import joined, moved
from unlearnx._data import Data, as_dataset, batches, dataset_of, materialize
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
    before = (
        frozen_prefix.features(request.dataset, batch_size=batch_size, dtype=dtype) if features is None else features
    )
    correction = request.correction
    if request.corrected is None or correction is None:
        return Request(as_dataset(before), request.forget)
    x, _ = materialize(before)
    if not request.labels_only:
        changed, _ = materialize(frozen_prefix.features(correction, batch_size=batch_size, dtype=dtype))
        x = x.clone()
        x[request.forget.to(x.device)] = changed
    labels = joined([y for _, y in batches(request.corrected)])
    return Request(as_dataset(before), request.forget, dataset_of(x, moved(labels, x.device)), request.labels_only)
