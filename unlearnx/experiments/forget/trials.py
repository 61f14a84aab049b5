"""The trials of one seed: the original, the retrained and the unlearned models, made, measured and kept."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from unlearnx import metrics
from unlearnx._memory_order import ImageOrder
from unlearnx.experiments import showcase
from unlearnx.experiments.forget import references
from unlearnx.experiments.forget.evaluation import Cost, StudyEvaluation
from unlearnx.experiments.outcomes import describe_outcome
from unlearnx.experiments.report import environment
from unlearnx.experiments.run_store import Entry, Recipe, RunStore
from unlearnx.experiments.runs import estimated_seconds, loaded, untrained
from unlearnx.methods import Method, Pipeline, Request

if TYPE_CHECKING:
    from unlearnx.experiments.forget.study import ForgetStudy

REFERENCES = {"original": 0, "retrained": 1000}  # models that are trained, and what is added to the seed of each
TIMED_STEPS = 12  # of training, from which its time is estimated where a model is read from a file


class SeedTrials:
    """The trials of one seed of a study. Models are loaded or trained when they are first needed."""

    def __init__(self, study: ForgetStudy, seed: int, store: RunStore):
        self.study, self.seed, self.store = study, seed, store
        self.sets = study.sets(seed)
        train, forget = self.sets.train, self.sets.parts["forget"]
        augmented = study.training.read(train)
        measure = None if augmented is train else train
        self.request = Request.remove(augmented, forget, measure=measure)

    def run(self) -> tuple[dict[str, Any], dict[str, Entry]]:
        """What result.json holds about the seed, and the trials of the sweeps."""
        references = {name: _without_recipe(self.trial(name)) for name in REFERENCES}
        methods = {name: _without_recipe(self.trial(name, m)) for name, m in self.study.methods.items()}
        variants = [sweep.variants(self.study.methods) for sweep in self.study.sweeps]
        swept = {name: self.trial(name, m) for methods in variants for name, m in methods.items()}
        return {"seed": self.seed, **references, "methods": methods}, swept

    def trial(self, name: str, method: Method | Pipeline | None = None) -> Entry:
        """The trial of a reference model, or of the model that `method` makes, read if finished, else made now."""
        recipe = self.study.recipe(name, self.seed, method)
        entry = self.store.find(recipe)
        if entry is None:
            entry = self._make(recipe, method)
            gap = f"{100 * entry['measures']['gap']:.2f} % from retraining after {entry['seconds']:.2f} s"
            note = "" if method is None or entry["applied"] else ", not applied"
            self.study.log(f"seed {self.seed}, {name}: {gap}{note}")
        return entry

    def confidences(self, name: str) -> Tensor:
        """Logit confidences (M,) of a finished trial's model in the labels of the forget set."""
        model = self._load(self.study.recipe(name, self.seed, self.study.methods.get(name)))
        return metrics.logit_confidence(model, self.sets.samples("forget"), autocast=self.study.training.autocast)

    def show(self, best: str | None) -> dict[str, Any]:
        """Confidences and saliency of the original, the retrained and the best model."""
        methods: dict[str, Method | Pipeline | None] = dict.fromkeys(REFERENCES)
        if best is not None:
            methods[best] = self.study.methods[best]
        models = {name: self._load(self.study.recipe(name, self.seed, method)) for name, method in methods.items()}
        classes = self.study.splits.classes
        return {
            "confidences": showcase.confidences(models, self.sets, self.study.training.autocast),
            "saliency": None if best is None else showcase.saliency_maps(models, best, self.sets, classes),
        }

    def _make(self, recipe: Recipe, method: Method | Pipeline | None) -> Entry:
        if method is None:
            model, cost, made = self._references[recipe["model"]]
        else:
            self.study.log(f"seed {self.seed}: {recipe['model']}")
            outcome = replace(method, seed=self.seed, progress=self.study.progress)(self._original, self.request)
            model, cost = outcome.model, Cost(outcome.seconds, outcome.gradient_evaluations)
            made = describe_outcome(outcome)
        entry = {**self._evaluation.measure(model, cost), "seconds": cost.seconds, **made, "environment": environment()}
        return self.store.save(recipe, entry, model)

    @cached_property
    def _original(self) -> nn.Module:
        return self._references["original"].model

    @cached_property
    def _references(self) -> dict[str, _Reference]:
        return {name: self._reference(name) for name in REFERENCES}

    @cached_property
    def _evaluation(self) -> StudyEvaluation:
        study, (original, retrained) = self.study, self._references.values()
        evaluation = StudyEvaluation(
            self.sets,
            study.network,
            original.model,
            retrained.model,
            retrained.cost,
            seed=self.seed,
            autocast=study.training.autocast,
            attack=study.attack,
            slow=study.slow_measures,
        )
        if file := study.file("retrained", self.seed):
            references.check_never_saw(file, evaluation.goal, len(self.sets.parts["forget"]))
        return evaluation

    def _reference(self, name: str) -> _Reference:
        """The original or the retrained model: of the finished trial, of a file of models, or trained now."""
        study, recipe = self.study, self.study.recipe(name, self.seed)
        images = len(self.sets.train[1] if name == "original" else self.sets.parts["retain"])
        gradients = study.training.epochs * images
        if (entry := self.store.find(recipe)) is not None:
            return _Reference(self._load(recipe), Cost(entry["seconds"], gradients), {})
        data = self.sets.train if name == "original" else self.sets.samples("retain")
        if file := study.file(name, self.seed):
            study.log(f"seed {self.seed}, {name}: read from {file}")
            seconds = estimated_seconds(study.network, study.training, data, steps=TIMED_STEPS, device=study.device)
            model = self._in_order(loaded(study.network, file, device=study.device))
            return _Reference(model, Cost(seconds, gradients), references.described(file))
        study.log(f"seed {self.seed}: training, {name} ({study.training.epochs} epochs, {images:,} images)")
        seed = self.seed + REFERENCES[name]
        model = untrained(study.network, seed=seed, device=study.device).train()
        training = replace(study.training, seed=seed, progress=study.progress)
        seconds = training.run(model, data, checkpoint=self.store.checkpoint(recipe))
        return _Reference(model.eval(), Cost(seconds, gradients), {})

    def _load(self, recipe: Recipe) -> nn.Module:
        return self._in_order(self.store.load(recipe, untrained(self.study.network, seed=0, device=self.study.device)))

    def _in_order(self, model: nn.Module) -> nn.Module:
        """In the memory order that training leaves a model in: other orders round differently."""
        if ImageOrder(model).taken(self.study.splits.train_x):
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model


class _Reference(NamedTuple):
    """The original or the retrained model, what it took, and what its trial says besides."""

    model: nn.Module
    cost: Cost
    said: Entry


def _without_recipe(entry: Entry) -> Entry:
    return {key: value for key, value in entry.items() if key not in ("recipe", "fingerprint", "environment")}
