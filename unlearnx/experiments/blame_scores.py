"""Which training points cause a model's failures: scores of every point, higher = more to blame."""

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
from unlearnx._data import materialize
from unlearnx._extras import extra
from unlearnx.curvature import FrozenPrefix
from unlearnx.experiments.runs import train
from unlearnx.metrics import probabilities
from unlearnx.metrics.outputs import each_batch, of_labels
from unlearnx.models import Training

Pair = tuple[Tensor, Tensor]

CURVE = 200  # points of a precision-recall curve, at most


@dataclass
class Suspects:
    """The training points of a model, and what is known of its failures.

    Attributes:
        model: trained on the points, in eval mode.
        network: builds an untrained model like it.
        training: of the networks that are trained without a part of the points.
        points: the training points x and the labels y that the model was given.
        validation: points with labels that are right.
        failures: those of them that the model gets wrong.
        folds: parts that are left out, each by one of these networks.
        seed: of the parts and of the networks.
        progress: show progress bars.
        device: where networks are trained.
    """

    model: nn.Module
    network: Callable[[], nn.Module]
    training: Training
    points: Pair
    validation: Pair
    failures: Pair
    folds: int
    seed: int
    progress: bool
    device: torch.device

    @cached_property
    def unseen(self) -> Tensor:
        """Probabilities (N, classes) that networks give to the points they were not trained on."""
        x, y = self.points
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.seed))
        result: Tensor | None = None
        for k in range(self.folds):
            left_out = order[k :: self.folds]
            stays = torch.ones(len(x), dtype=torch.bool)
            stays[left_out] = False
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
        """Loss of every point in the model."""
        return self._of_outputs(lambda scores, y: F.cross_entropy(scores, y, reduction="none"))

    def margins(self) -> Tensor:
        """How far the best other class is ahead of the label, in the model."""

        def margin(scores: Tensor, y: Tensor) -> Tensor:
            own = of_labels(scores, y)
            return scores.scatter(1, y[:, None], -torch.inf).amax(1) - own

        return self._of_outputs(margin)

    def unseen_losses(self) -> Tensor:
        """Loss of every point in a network that was not trained on it."""
        own = of_labels(self.unseen, self.points[1]).double()
        return -own.clamp(min=torch.finfo(torch.float32).tiny).log()

    def linear_influences(self) -> Tensor:
        """Influence of every point on the failures, to first order."""
        return attribution.linear_influence(self.model, F.cross_entropy, self.points, self.failures).cpu()

    def ewc_influences(self) -> Tensor:
        """Influence of every point, by a model that was taught the failures."""
        return attribution.ewc_influence(
            self.model, F.cross_entropy, self.points, self.failures, progress=self.progress
        ).cpu()

    def shapley_values(self) -> Tensor:
        """Minus what every point is worth to its neighbours among the validation points."""
        cut = FrozenPrefix(self.model, "last:2", self.points)
        (x, y), (x_valid, y_valid) = (materialize(cut.features(data)) for data in (self.points, self.validation))
        return -attribution.knn_shapley(x, y, x_valid, y_valid).cpu()

    def _of_outputs(self, score: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        parts = each_batch((self.model,), self.points, None, None, lambda out, y: score(out.double(), y).cpu())
        return torch.cat(parts)


@dataclass(frozen=True)
class Score:
    """A score as the study takes it: how, and what it is in a sentence."""

    of: Callable[[Suspects], Tensor]
    note: str


UNSEEN = "out-of-sample loss"

SCORES = {
    UNSEEN: Score(
        Suspects.unseen_losses,
        "Loss of the point in a network that was trained without it, by cross-validation; needs no failures "
        "(Northcutt et al. 2021).",
    ),
    "linear influence": Score(
        Suspects.linear_influences,
        "How much more likely the failures become, to first order, once the point is forgotten (Tanno et al. 2022).",
    ),
    "EWC influence": Score(
        Suspects.ewc_influences,
        "How much less likely the point becomes once the model has been taught the failures (Tanno et al. 2022).",
    ),
    "k-NN Shapley": Score(
        Suspects.shapley_values,
        "Minus the Shapley value of the point for a nearest-neighbour classifier of the validation points, on "
        "features of the model (Jia et al. 2019).",
    ),
    "training loss": Score(Suspects.losses, "Loss of the point in the model that was trained on it."),
    "margin": Score(
        Suspects.margins, "How far another class is ahead of the point's label in the model that was trained on it."
    ),
}


def scored(suspects: Suspects, score: Score) -> tuple[Tensor, float]:
    """The score of every point, float64 (N,), and the seconds it took."""
    start = time.perf_counter()
    values = score.of(suspects).double()
    return values, time.perf_counter() - start


def doubted(p: Tensor, y: Tensor) -> Tensor:
    """Points whose label is less likely than a guess to networks that were trained without them, as a mask (N,).

    To take every point whose label is not the likeliest would take many that are right and hard, which the treated
    model then has to do without.

    Args:
        p: probabilities (N, classes) that these networks give.
        y: the labels that the points were given, int64 (N,).
    """
    return of_labels(p, y) < 1 / p.shape[1]


def worst(score: Tensor, k: int) -> Tensor:
    """The `k` points of highest score, the worst first, int64 (k,)."""
    return score.sort(descending=True, stable=True).indices[:k]


def judged(score: Tensor, spoilt: Tensor) -> dict[str, Any]:
    """How well a score finds the points that were spoilt, a mask (N,).

    Returns:
        Area under the ROC curve, average precision, precision among as many points as are spoilt (which then is the
        recall too), and the curve of precision against recall.
    """
    with extra("repair-mnist", "scikit-learn"):
        from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    truth, values = spoilt.numpy(), score.numpy()
    precision, recall, _ = precision_recall_curve(truth, values)
    shown = torch.linspace(0, len(recall) - 1, min(CURVE, len(recall))).long().numpy()
    return {
        "auroc": float(roc_auc_score(truth, values)),
        "average_precision": float(average_precision_score(truth, values)),
        "precision": spoilt[worst(score, int(spoilt.sum()))].double().mean().item(),
        "curve": {"recall": recall[shown].tolist(), "precision": precision[shown].tolist()},
    }
