"""The measures of the models of one seed, beside the original model and the retrained one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from unlearnx import metrics
from unlearnx._checks import model_device
from unlearnx.experiments.evaluation import Evaluation, Sets
from unlearnx.experiments.measures import ATTACKS, gap_measures
from unlearnx.experiments.runs import untrained

MAX_RELEARN_IMAGES = 256  # of the forget set: the loss on all of them is measured after each step
MAX_RELEARN_STEPS = 50


class StudyEvaluation(Evaluation):
    """Measures the models of one seed.

    Args:
        sets: the images.
        network: builds an untrained model.
        original, retrained: the models to compare with.
        retraining_seconds: time that retraining took.
        seed: of the untrained network and of what the measures draw.
        autocast: dtype for the layers that mixed precision speeds up; None keeps the models' own dtype.
    """

    def __init__(
        self,
        sets: Sets,
        network: Callable[[], nn.Module],
        original: nn.Module,
        retrained: nn.Module,
        retraining_seconds: float,
        *,
        seed: int,
        autocast: torch.dtype | None,
    ):
        super().__init__(sets, autocast=autocast)
        self.original, self.retrained, self.retraining_seconds = original, retrained, retraining_seconds
        self.seed = seed
        self._untrained = untrained(network, seed=seed + 2000, device=model_device(original)).eval()
        self._goal = {**self.accuracies(retrained), **self._attacks(retrained)}

    def measure(self, model: nn.Module, seconds: float) -> dict[str, Any]:
        """The ``measures`` of a model that took `seconds` to make, and a ``warning`` if it forgot too much."""
        measures = {**self.accuracies(model), **self._attacks(model)}
        measures["ua"] = 1 - measures["forget_accuracy"]
        measures["gap"] = metrics.gap(gap_measures(measures), gap_measures(self._goal))
        measures["tow"] = metrics.tug_of_war(_three(measures), _three(self._goal))
        measures |= self.distance(model, self.retrained)
        measures["zrf"] = metrics.zrf(self.scores(model), self.scores(self._untrained), self.sets.numbers("forget"))
        measures["relearn_time"] = self._relearn_time(model)
        measures["seconds"] = seconds
        measures["runtime_ratio"] = metrics.runtime_ratio(seconds, self.retraining_seconds)
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
