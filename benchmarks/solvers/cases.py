"""A model of each study, what it is to forget, and how what is left of it is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from benchmarks.untuned.sources import Sources
from unlearnx import Request
from unlearnx.curvature import FrozenPrefix
from unlearnx.data import Poison
from unlearnx.experiments import canary_alice, forget_class_digits
from unlearnx.experiments.canary import NOVEL
from unlearnx.experiments.forget.evaluation import Cost, StudyEvaluation
from unlearnx.metrics import accuracy
from unlearnx.models import fast_dtype, vgg_cifar10

Measures = dict[str, float]
CPU = torch.device("cpu")
LAST_SIX = "last:6"
EXPOSURE_SAMPLES = 20_000  # a fifth of the study's: every way's model is measured


@dataclass(frozen=True)
class Case:
    """A study with one seed.

    Attributes:
        model: to be changed, in eval mode.
        request: what it is to forget.
        measure: measures of a model, by their names.
        retrained: measures of a model trained without what is to be forgotten.
        settings: arguments of all methods.
        influence: arguments of :class:`unlearnx.methods.SecondOrder` alone.
    """

    model: nn.Module
    request: Request
    measure: Callable[[nn.Module], Measures]
    retrained: Measures
    settings: dict[str, Any] = field(default_factory=dict)
    influence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """What makes the case of a seed, and the seeds that there are models for."""

    make: Callable[[Sources, int], Case]
    seeds: tuple[int, ...]


def poison_cifar(sources: Sources, seed: int) -> Case:
    """10,000 flipped labels put right in the last six tensors, whose inputs are made once and for all methods.

    The clean network stands for a retrained one.
    """
    splits = sources.cifar10()
    poisoned, clean = (sources.weights(vgg_cifar10, f"cifar10-vgg-{name}.pt") for name in ("poisoned", "clean"))
    given = Poison.load(sources.file("cifar10-poison.npz")).apply(splits.train_y)
    test = splits.test_x, splits.test_y
    parts = FrozenPrefix(poisoned, LAST_SIX, test)
    dtype = fast_dtype(CPU)
    x = parts.features((splits.train_x, given), dtype=dtype).tensors[0]  # type: ignore[union-attr]
    unseen = parts.features(test, dtype=dtype)
    before, reached = accuracy(parts.head, unseen), accuracy(clean, test)

    def measure(model: nn.Module) -> Measures:
        found = accuracy(model, unseen)
        return {"test_accuracy": found, "restored": (found - before) / (reached - before)}

    retrained = {"test_accuracy": reached, "restored": 1.0}
    request = Request.correct((x, given), (x, splits.train_y))
    return Case(parts.head, request, measure, retrained, {"params": LAST_SIX})


def forget_digits(sources: Sources, seed: int) -> Case:
    """A class of the digits, with all parameters free to change."""
    study = forget_class_digits(progress=False)
    sets = study.sets(seed)
    data = sets.train
    request = Request.remove(data, sets.parts["forget"])
    stays = request.retain
    model, _ = sources.trained(study.network, study.training, data, seed)
    retrained, _ = sources.trained(study.network, study.training, tuple(t[stays] for t in data), seed + 1000)
    free = Cost(seconds=1.0, gradient_evaluations=1)  # costs are measured by the study of solvers itself
    evaluation = StudyEvaluation(sets, study.network, model, retrained, free, seed=seed, autocast=None, slow=False)

    def measure(model: nn.Module) -> Measures:
        found = evaluation.measure(model, free)["measures"]
        return {key: found[key] for key in ("gap", "forget_accuracy", "retain_accuracy", "test_accuracy")}

    names = [name for name, _ in model.named_parameters()]  # given by name: no method takes the last layer instead
    return Case(model, request, measure, measure(retrained), {"params": names})


def canary(sources: Sources, seed: int) -> Case:
    """A number that a language model knows by heart, corrected to words."""
    study = replace(canary_alice(sources.text(NOVEL), progress=False), samples=EXPOSURE_SAMPLES)
    plant = study.plant(seed)

    def network() -> nn.Module:
        return study.network(plant.alphabet)

    model, _ = sources.trained(network, study.training, plant.learned, seed)
    retrained, _ = sources.trained(network, study.training, plant.corrected, seed + 1000)

    def measure(model: nn.Module) -> Measures:
        found = study.measure(model, plant)
        return {key: found[key] for key in ("exposure", "lower_bound", "log_perplexity", "accuracy")}

    request = plant.request(study.context, seed, features=False)
    return Case(model, request, measure, measure(retrained), {}, {"points": "forget"})


CASES = {
    "poison-cifar": Study(poison_cifar, (0,)),
    "forget-class-digits": Study(forget_digits, (0, 1, 2)),
    "canary-alice": Study(canary, (0,)),
}
