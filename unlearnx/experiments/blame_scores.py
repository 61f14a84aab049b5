"""Scores of training samples for how much they cause a model's failures; higher is more to blame."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnx import attribution
from unlearnx._data import left_of, materialize
from unlearnx._extras import extra
from unlearnx.curvature import FrozenPrefix
from unlearnx.experiments.runs import train
from unlearnx.metrics import probabilities
from unlearnx.metrics.outputs import each_batch, of_labels
from unlearnx.models import Training

Pair = tuple[Tensor, Tensor]

MAX_CURVE_POINTS = 200  # of a precision-recall curve


@dataclass
class Suspects:
    """The training samples of a model, and what is known about its failures.

    Attributes:
        model: trained on the samples, in eval mode.
        network: builds an untrained model of the same kind.
        training: how the networks of the cross-validation are trained.
        samples: the training samples x and the labels y that the model was given, right or wrong.
        validation: samples with correct labels.
        failures: those of them that the model gets wrong.
        folds: parts of the cross-validation; each network is trained without one of them.
        seed: of the parts and of the networks.
        progress: show progress bars.
        device: where the networks are trained.
    """

    model: nn.Module
    network: Callable[[], nn.Module]
    training: Training
    samples: Pair
    validation: Pair
    failures: Pair
    folds: int
    seed: int
    progress: bool
    device: torch.device

    @cached_property
    def unseen(self) -> Tensor:
        """Probabilities (N, classes) for each sample, from the network that was trained without it."""
        x, y = self.samples
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.seed))
        result: Tensor | None = None
        for k in range(self.folds):
            left_out = order[k :: self.folds]
            stays = left_of(len(x), left_out)
            model, _ = train(
                self.network,
                self.training,
                (x[stays], y[stays]),
                seed=self.seed + 2000 + k,
                device=self.device,
                progress=self.progress,
            )
            part = probabilities(model, (x[left_out], y[left_out]))
            if result is None:
                result = part.new_empty(len(x), part.shape[1])
            result[left_out] = part
        assert result is not None
        return result

    def losses(self) -> Tensor:
        """Loss of each sample under the model."""
        return self._of_outputs(lambda scores, y: F.cross_entropy(scores, y, reduction="none"))

    def margins(self) -> Tensor:
        """How much higher the model scores the best other class than the label."""

        def margin(scores: Tensor, y: Tensor) -> Tensor:
            own = of_labels(scores, y)
            return scores.scatter(1, y[:, None], -torch.inf).amax(1) - own

        return self._of_outputs(margin)

    def unseen_losses(self) -> Tensor:
        """Loss of each sample under the network that was trained without it."""
        own = of_labels(self.unseen, self.samples[1]).double()
        return -own.clamp(min=torch.finfo(torch.float32).tiny).log()

    def linear_influences(self) -> Tensor:
        """First-order influence of each sample on the failures."""
        return attribution.linear_influence(self.model, F.cross_entropy, self.samples, self.failures).cpu()

    def ewc_influences(self) -> Tensor:
        """Influence of each sample, by a copy of the model that was trained to get the failures right."""
        return attribution.ewc_influence(
            self.model, F.cross_entropy, self.samples, self.failures, progress=self.progress
        ).cpu()

    def shapley_values(self) -> Tensor:
        """Minus the k-nearest-neighbour Shapley value of each sample for the validation samples."""
        cut = FrozenPrefix(self.model, "last:2", self.samples)
        (x, y), (x_valid, y_valid) = (materialize(cut.features(data)) for data in (self.samples, self.validation))
        return -attribution.knn_shapley(x, y, x_valid, y_valid).cpu()

    def _of_outputs(self, score: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        parts = each_batch((self.model,), self.samples, None, None, lambda out, y: score(out.double(), y).cpu())
        return torch.cat(parts)


@dataclass(frozen=True)
class Score:
    """A score of the study: the function that computes it, and a sentence on what it is."""

    of: Callable[[Suspects], Tensor]
    note: str


UNSEEN = "out-of-sample loss"

SCORES = {
    UNSEEN: Score(
        Suspects.unseen_losses,
        "Loss of the sample under a network that was trained without it, by cross-validation; needs no failures "
        "(Northcutt et al. 2021).",
    ),
    "linear influence": Score(
        Suspects.linear_influences,
        "How much more likely the failures become, to first order, once the sample is forgotten (Tanno et al. 2022).",
    ),
    "EWC influence": Score(
        Suspects.ewc_influences,
        "How much less likely the sample becomes when the model learns to get the failures right (Tanno et al. 2022).",
    ),
    "k-NN Shapley": Score(
        Suspects.shapley_values,
        "Minus the Shapley value of the sample for a nearest-neighbour classifier of the validation samples, on "
        "features of the model (Jia et al. 2019).",
    ),
    "training loss": Score(Suspects.losses, "Loss of the sample under the model that was trained on it."),
    "margin": Score(
        Suspects.margins,
        "How much higher another class is scored than the sample's label by the model that was trained on it.",
    ),
}


def scored(suspects: Suspects, score: Score) -> tuple[Tensor, float]:
    """The score of each sample, float64 (N,), and the seconds it took."""
    start = time.perf_counter()
    values = score.of(suspects).double()
    return values, time.perf_counter() - start


def doubted(p: Tensor, y: Tensor) -> Tensor:
    """Samples whose label is less likely than chance to the network that was trained without them, as a mask (N,).

    The stricter test, that the label is not the most likely one, would also choose many samples that are correctly
    labelled but hard, and the repaired model would lack them.

    Args:
        p: probabilities (N, classes) from these networks.
        y: the labels that the samples were given, int64 (N,).
    """
    return of_labels(p, y) < 1 / p.shape[1]


def worst(score: Tensor, k: int) -> Tensor:
    """Indices of the `k` samples with the highest scores, the highest first, int64 (k,)."""
    return score.sort(descending=True, stable=True).indices[:k]


def judged(score: Tensor, spoilt: Tensor) -> dict[str, Any]:
    """How well a score finds the spoilt samples, which are given as a mask (N,).

    Returns:
        Area under the ROC curve; average precision; precision among the K samples of highest score, where K is the
        number of spoilt samples (so it equals the recall); and the curve of precision against recall.
    """
    with extra("repair-mnist", "scikit-learn"):
        from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    truth, values = spoilt.numpy(), score.numpy()
    precision, recall, _ = precision_recall_curve(truth, values)
    shown = torch.linspace(0, len(recall) - 1, min(MAX_CURVE_POINTS, len(recall))).long().numpy()
    return {
        "auroc": float(roc_auc_score(truth, values)),
        "average_precision": float(average_precision_score(truth, values)),
        "precision": spoilt[worst(score, int(spoilt.sum()))].double().mean().item(),
        "curve": {"recall": recall[shown].tolist(), "precision": precision[shown].tolist()},
    }
