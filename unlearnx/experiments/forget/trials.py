"""The trials of one seed: the original, the retrained and the unlearned models, made, measured and kept."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from unlearnx._data import materialize
from unlearnx._memory_order import ImageOrder
from unlearnx.experiments import showcase
from unlearnx.experiments.forget.evaluation import StudyEvaluation
from unlearnx.experiments.outcomes import describe_outcome
from unlearnx.experiments.report import environment
from unlearnx.experiments.run_store import Entry, Recipe, RunStore
from unlearnx.experiments.runs import untrained
from unlearnx.methods import Method, Pipeline, Request

if TYPE_CHECKING:
    from unlearnx.experiments.forget.study import ForgetStudy

REFERENCES = {"original": 0, "retrained": 1000}  # models that are trained, and what is added to the seed of each


class SeedTrials:
    """The trials of one seed of a study. Models are loaded or trained when they are first needed."""

    def __init__(self, study: ForgetStudy, seed: int, store: RunStore):
        self.study, self.seed, self.store = study, seed, store
        self.sets = study.sets(seed)
        self.request = Request.remove(self.sets.train, self.sets.parts["forget"])

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
            model, seconds = self._references[recipe["model"]]
            made: Entry = {}
        else:
            self.study.log(f"seed {self.seed}: {recipe['model']}")
            outcome = replace(method, seed=self.seed, progress=self.study.progress)(self._original, self.request)
            model, seconds = outcome.model, outcome.seconds
            made = describe_outcome(outcome)
        entry = {**self._evaluation.measure(model, seconds), "seconds": seconds, **made, "environment": environment()}
        return self.store.save(recipe, entry, model)

    @cached_property
    def _original(self) -> nn.Module:
        return self._references["original"][0]

    @cached_property
    def _references(self) -> dict[str, tuple[nn.Module, float]]:
        """Models and the seconds that their training took."""
        return {name: self._trained(name) for name in REFERENCES}

    @cached_property
    def _evaluation(self) -> StudyEvaluation:
        (original, _), (retrained, seconds) = self._references.values()
        autocast = self.study.training.autocast
        return StudyEvaluation(
            self.sets, self.study.network, original, retrained, seconds, seed=self.seed, autocast=autocast
        )

    def _trained(self, name: str) -> tuple[nn.Module, float]:
        recipe = self.study.recipe(name, self.seed)
        entry = self.store.find(recipe)
        if entry is not None:
            return self._load(recipe), entry["seconds"]
        data = materialize(self.request.dataset if name == "original" else self.request.target)
        seed = self.seed + REFERENCES[name]
        self.study.log(
            f"seed {self.seed}: training, {name} ({self.study.training.epochs} epochs, {len(data[0]):,} images)"
        )
        training = replace(self.study.training, seed=seed, progress=self.study.progress)
        model = untrained(self.study.network, seed=seed, device=self.study.device)
        seconds = training.run(model.train(), data, checkpoint=self.store.checkpoint(recipe))
        return model.eval(), seconds

    def _load(self, recipe: Recipe) -> nn.Module:
        model = self.store.load(recipe, untrained(self.study.network, seed=0, device=self.study.device))
        if ImageOrder(model).taken(self.study.splits.train_x):  # as after training: other orders round differently
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model


def _without_recipe(entry: Entry) -> Entry:
    return {key: value for key, value in entry.items() if key not in ("recipe", "fingerprint", "environment")}
