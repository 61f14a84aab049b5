"""The labels with which a Fisher information takes its gradients: those of the data, or the model's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from unlearnx import _distributed as distributed
from unlearnx._batches import Nest, count, rows, scores
from unlearnx._losses import SampleLoss
from unlearnx.curvature.targets import Targets


class FisherLabels:
    """The targets of the backward passes of a batch, for a ``fisher_type`` that is one of single samples.

    Args:
        loss: per-sample losses; labels that they ignore stay ignored.
        fisher_type: ``"empirical"``, ``"mc"`` or ``"exact"``.
        samples: number of samples in the data.
        device: of the model.
        generator: CPU generator for ``"mc"``: a number in [0, 1) for every sample, drawn here.
    """

    def __init__(
        self,
        loss: SampleLoss,
        fisher_type: str,
        samples: int,
        device: torch.device,
        generator: torch.Generator | None,
    ):
        self.loss, self.fisher_type = loss, fisher_type
        self.uniforms: Tensor | None = None
        if fisher_type == "mc":
            drawn = torch.rand(samples, dtype=torch.float64, generator=generator)
            self.uniforms = distributed.broadcast_(drawn.to(device))

    def __call__(self, position: int, y: Nest, given: Callable[[], Any]) -> Iterator[Targets]:
        """The labels for each backward pass, with the weights of the samples.

        `position` is the first sample's; the model's output is `given` where the labels depend on it.
        """
        if self.fisher_type == "empirical":
            yield Targets(y)
            return
        output = rows(scores(given()), count(y))
        if output.dim() != 2 or output.shape[1] < 2:
            raise ValueError(
                f'model: output has shape {list(output.shape)}, fisher_type="{self.fisher_type}" needs (N, classes) '
                "with at least two classes"
            )
        if not isinstance(y, Tensor) or y.dim() != 1 or y.is_floating_point():
            what = f"shape {list(y.shape)} and dtype {y.dtype}" if isinstance(y, Tensor) else f"type {type(y).__name__}"
            raise ValueError(f'data: y has {what}, fisher_type="{self.fisher_type}" needs one class number per sample')
        ignored = y == self.loss.ignore_index
        probabilities = output.softmax(1, dtype=torch.float64 if output.dtype == torch.float64 else torch.float32)
        if self.uniforms is not None:
            samples = torch.arange(position, position + len(y), device=output.device)
            uniforms = self.uniforms[samples % len(self.uniforms)]  # a DataLoader may repeat samples
            below = probabilities.double().cumsum(1)
            drawn = torch.searchsorted(below, (uniforms * below[:, -1])[:, None], right=True)
            yield Targets(y.where(ignored, drawn.squeeze(1).clamp_(max=output.shape[1] - 1)))
            return
        for c in range(output.shape[1]):
            yield Targets(y.where(ignored, c), weight=probabilities[:, c])
