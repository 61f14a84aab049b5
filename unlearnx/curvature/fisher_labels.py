"""The labels with which a Fisher information takes its gradients: those of the data, or the model's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from unlearnx import _distributed as distributed
from unlearnx._batches import Nest, count, rows, scores
from unlearnx._losses import SampleLoss
from unlearnx.curvature.independent import IndependentLabels
from unlearnx.curvature.positions import Positions, drawn, uniforms_of
from unlearnx.curvature.targets import Targets

OTHERS = "answers and values are understood with the binary cross-entropy and squared error of torch or unlearnx.losses"


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
            uniforms = torch.rand(samples, dtype=torch.float64, generator=generator)
            self.uniforms = distributed.broadcast_(uniforms.to(device))

    def __call__(self, position: int, y: Nest, given: Callable[[], Any]) -> Iterator[Targets]:
        """The labels for each backward pass, with the weights of the samples.

        `position` is the first sample's; the model's output is `given` where the labels depend on it.
        """
        if self.fisher_type == "empirical":
            yield Targets(y)
            return
        output = given()
        independent = IndependentLabels.of(self.loss.loss_fn)
        if independent is not None and isinstance(y, Tensor):
            yield from self._of_independent(independent, position, y, output)
            return
        if isinstance(y, Tensor) and y.dim() > 1 and not y.is_floating_point():
            yield from self._of_positions(position, y, output)
            return
        output = rows(scores(output), count(y))
        if output.dim() != 2 or output.shape[1] < 2:
            raise ValueError(
                f'model: output has shape {list(output.shape)}, fisher_type="{self.fisher_type}" needs (N, classes) '
                f"with at least two classes; {OTHERS}"
            )
        if not isinstance(y, Tensor) or y.dim() != 1 or y.is_floating_point():
            what = f"shape {list(y.shape)} and dtype {y.dtype}" if isinstance(y, Tensor) else f"type {type(y).__name__}"
            raise ValueError(f'data: y has {what}, fisher_type="{self.fisher_type}" needs class numbers; {OTHERS}')
        ignored = y == self.loss.ignore_index
        probabilities = output.softmax(1, dtype=torch.float64 if output.dtype == torch.float64 else torch.float32)
        if self.uniforms is not None:
            yield Targets(y.where(ignored, drawn(probabilities, self._uniforms(position, len(y)))))
            return
        for c in range(output.shape[1]):
            yield Targets(y.where(ignored, c), weight=probabilities[:, c])

    def _of_positions(self, position: int, y: Tensor, output: Any) -> Iterator[Targets]:
        """A label drawn for each position; or, for each position and class, this label alone with its probability."""
        known = Positions.of(self.loss.loss_fn)
        if known is None:
            raise ValueError(
                f'loss_fn: it is not known where its labels are, which fisher_type="{self.fisher_type}" needs with '
                "several positions a sample; expected torch's cross-entropy, unlearnx.losses.cross_entropy or causal_lm"
            )
        probabilities, labels = known.probabilities(output, y), known.labels(y)
        labelled = labels != self.loss.ignore_index
        if self.uniforms is not None:
            uniforms = uniforms_of(self._uniforms(position, len(y)), labels.shape[1])
            own = labels.clone()
            own[labelled] = drawn(probabilities[labelled], uniforms[labelled])
            yield Targets(known.with_labels(y, own))
            return
        # The gradients of all labels, of which none counts, tell which positions have a say.
        yield Targets(y, weight=torch.zeros_like(probabilities[:, 0, 0]))
        factors = known.factors(labelled).square().to(probabilities)
        for t in labelled.any(0).nonzero().flatten().tolist():
            for c in range(probabilities.shape[2]):
                own = torch.full_like(labels, self.loss.ignore_index)
                own[:, t] = labels[:, t].where(~labelled[:, t], c)
                yield Targets(known.with_labels(y, own), weight=probabilities[:, t, c] * factors)

    def _of_independent(
        self, independent: IndependentLabels, position: int, y: Tensor, output: Any
    ) -> Iterator[Targets]:
        """All labels drawn; or, for each label of a sample, what it changes in the loss, times its variance."""
        values = rows(scores(output), len(y))
        if values.numel() != y.numel():
            raise ValueError(
                f"data: y has shape {list(y.shape)} with outputs of shape {list(values.shape)}, expected as many"
            )
        means, labels = independent.means(values).reshape(len(y), -1), y.reshape(len(y), -1)
        labelled = (
            labels != self.loss.ignore_index if independent.answers else torch.ones_like(labels, dtype=torch.bool)
        )
        labels = labels if labels.is_floating_point() else labels.to(means)
        if self.uniforms is not None:
            uniforms = self._uniforms(position, len(y))
            of_labels = uniforms[:, None] if means.shape[1] == 1 else uniforms_of(uniforms, means.shape[1])
            yield Targets(independent.drawn(means, of_labels).to(labels).where(labelled, labels).view_as(y))
            return
        if not independent.likelihood:
            raise ValueError('loss_fn: has pos_weight, which fisher_type="exact" does not know; expected "mc"')
        if means.shape[1] > 1:  # the gradients of all labels, of which none counts, tell which positions have a say
            yield Targets(y, weight=torch.zeros_like(means[:, 0]))
        variances = independent.variances(means)
        for j in labelled.any(0).nonzero().flatten().tolist():
            yes, no = labels.clone(), labels.clone()
            yes[:, j], no[:, j] = (labels[:, j].where(~labelled[:, j], label) for label in (1, 0))
            yield Targets(yes.view_as(y), no.view_as(y), weight=variances[:, j])

    def _uniforms(self, position: int, count: int) -> Tensor:
        assert self.uniforms is not None
        samples = torch.arange(position, position + count, device=self.uniforms.device)
        return self.uniforms[samples % len(self.uniforms)]  # a DataLoader may repeat samples
