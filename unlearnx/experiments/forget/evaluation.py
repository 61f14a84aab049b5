"""The measures of the models of one seed, beside the original model and the retrained one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from unlearnx import metrics
from unlearnx._checks import model_device
from unlearnx.experiments.evaluation import Evaluation, Sets
from unlearnx.experiments.measures import ATTACKS, gap_measures
from unlearnx.experiments.runs import untrained

MAX_RELEARN_IMAGES = 256  # of the forget set: the loss on all of them is measured after each step
MAX_RELEARN_STEPS = 50


class Cost(NamedTuple):
    """What a model took to make."""

    seconds: float
    gradient_evaluations: int


class StudyEvaluation(Evaluation):
    """Measures the models of one seed.

    Args:
        sets: the images.
        network: builds an untrained model.
        original, retrained: the models to compare with.
        retraining: seconds and gradient evaluations that retraining took.
        seed: of the untrained network and of what the measures draw.
        autocast: dtype for the layers that mixed precision speeds up; None keeps the models' own dtype.
        attack: whose result the gap averages.
        slow: whether an untrained model is run on all images, and models are trained until they know the forget set as
            before.
    """

    def __init__(
        self,
        sets: Sets,
        network: Callable[[], nn.Module],
        original: nn.Module,
        retrained: nn.Module,
        retraining: Cost,
        *,
        seed: int,
        autocast: torch.dtype | None,
        attack: str = "salun",
        slow: bool = True,
    ):
        super().__init__(sets, autocast=autocast)
        self.original, self.retrained, self.retraining = original, retrained, retraining
        self.seed, self.gap_attack, self.slow = seed, attack, slow
        if slow:
            self._untrained = untrained(network, seed=seed + 2000, device=model_device(original)).eval()
        self.goal = {**self.accuracies(retrained), **self._attacks(retrained)}

    def measure(self, model: nn.Module, cost: Cost) -> dict[str, Any]:
        """The ``measures`` of a model that took so much to make, and a ``warning`` if it forgot too much."""
        measures: dict[str, Any] = {**self.accuracies(model), **self._attacks(model)}
        measures["ua"] = 1 - measures["forget_accuracy"]
        measures["gap"] = metrics.gap(*(gap_measures(m, self.gap_attack) for m in (measures, self.goal)))
        measures["tow"] = metrics.tug_of_war(_three(measures), _three(self.goal))
        measures |= self.distance(model, self.retrained)
        if self.slow:
            measures["zrf"] = metrics.zrf(self.scores(model), self.scores(self._untrained), self.sets.numbers("forget"))
            measures["relearn_time"] = self._relearn_time(model)
        measures |= self.come_back(model, F.cross_entropy, seed=self.seed)
        measures["seconds"] = cost.seconds
        measures["runtime_ratio"] = metrics.runtime_ratio(cost.seconds, self.retraining.seconds)
        measures["gradient_ratio"] = cost.gradient_evaluations / self.retraining.gradient_evaluations
        return {"measures": measures, "warning": self.over_forgetting(model, self.retrained)}

    def _attacks(self, model: nn.Module) -> dict[str, float]:
        return {
            f"mia_{protocol}{suffix}": self.attack(model, protocol, self.sets.numbers(unseen))
            for unseen, suffix in (("test", ""), ("test_forgotten", "_class"))
            if unseen in self.sets.parts
            for protocol in ATTACKS
        }

    def _relearn_time(self, model: nn.Module) -> float:
        images, labels = self.sets.samples("forget")
        found = metrics.relearn_time(
            model,
            self.original,
            self.retrained,
            (images[:MAX_RELEARN_IMAGES], labels[:MAX_RELEARN_IMAGES]),
            max_steps=MAX_RELEARN_STEPS,
            seed=self.seed,
            autocast=self.autocast,
        )
        return found.ratio


def _three(measures: Mapping[str, float]) -> dict[str, float]:
    return {part: measures[f"{part}_accuracy"] for part in ("forget", "retain", "test")}
