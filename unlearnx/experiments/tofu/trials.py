"""The models of one seed: fine-tuned, retrained, and unlearned, made, measured and kept."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from unlearnx.curvature import EKFAC, Factors
from unlearnx.data.tofu import Question
from unlearnx.experiments.outcomes import describe_outcome
from unlearnx.experiments.refusals import REFUSALS
from unlearnx.experiments.run_store import Entry, Recipe, RunStore
from unlearnx.experiments.runs import describe
from unlearnx.experiments.text_samples import dataset_of
from unlearnx.experiments.tofu.choice import best, distance
from unlearnx.experiments.tofu.measures import TofuMeasures
from unlearnx.experiments.tofu.methods import Candidate
from unlearnx.experiments.tofu.texts import some_of
from unlearnx.losses import causal_lm
from unlearnx.methods import IDK, Method, Pipeline, Request
from unlearnx.methods.stored import FromFactors

if TYPE_CHECKING:
    from unlearnx.experiments.tofu.study import TofuStudy

ADDED = {"original": 0, "retrained": 1000, "validation": 2000}  # to the seed of each model that is trained
FITTED = 2  # samples that factors are fitted on, in sizes of the forget set


@dataclass(frozen=True)
class Solved:
    """Kronecker factors of the training data, and the seconds that they took."""

    factors: Factors
    seconds: float


class SeedTrials:
    """The trials of one seed of a study. Models are loaded or trained when they are first needed."""

    def __init__(self, study: TofuStudy, seed: int, store: RunStore):
        self.study, self.seed, self.store = study, seed, store
        self._models: dict[str, nn.Module] = {}

    def choose(self) -> dict[str, dict[str, Any]]:
        """The strength of every method that does best on the validation authors, and all that was tried."""
        study, reference = self.study, self._reference("validation")
        found = {}
        for name, candidate in study.methods.items():
            methods = candidate.tried(study.trials)
            tried = [self._tried(f"{name} {k}", candidate, method, reference) for k, method in enumerate(methods)]
            k = best(tried)
            found[name] = {
                "method": describe(methods[k]),
                "strength": candidate.strength,
                "value": tried[k]["value"],
                "chosen": k,
                "tried": tried,
            }
        return found

    def run(self, chosen: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """What result.json holds about the seed, besides values by question, which are in the trials."""
        retrained = self._reference("retrained")
        entries = {"original": self._reference("original")}
        for name, candidate in self.study.methods.items():
            entries[name] = self._unlearned(name, candidate.tried(self.study.trials)[chosen[name]["chosen"]])
        entries["retrained"] = retrained
        for entry in entries.values():
            entry["measures"]["seconds"] = entry["seconds"]
            entry["measures"]["speedup"] = retrained["seconds"] / entry["seconds"]
        self.study.write(self.store, self.seed, entries)
        left_out = ("recipe", "fingerprint", "questions", "kept")
        shown = {name: {k: v for k, v in entry.items() if k not in left_out} for name, entry in entries.items()}
        return {
            "seed": self.seed,
            "original": shown.pop("original"),
            "retrained": shown.pop("retrained"),
            "methods": shown,
        }

    def _tried(self, name: str, candidate: Candidate, method: Method | Pipeline, reference: Entry) -> Entry:
        """The trial of a strength on the validation authors."""
        study, value = self.study, candidate.value(method)
        recipe = study.recipe(name, self.seed, method)
        entry = self.store.find(recipe)
        if entry is None:
            upper, made = self._applied(method, study.split.validation)
            found = distance(study.validation.quick(upper), reference["quick"])
            entry = self.store.save(recipe, {**found, "seconds": made["seconds"], "applied": made["applied"]}, None)
            strength = "" if value is None else f", {candidate.strength}={value:g}"
            study.log(f"validation, {name}{strength}: {found['ks']:.2f} + {found['lost']:.2f}")
        return {"value": value, **{key: entry[key] for key in ("ks", "lost", "score", "seconds", "applied")}}

    def _unlearned(self, name: str, method: Method | Pipeline) -> Entry:
        recipe = self.study.recipe(name, self.seed, method)
        entry = self.store.find(recipe)
        if entry is None:
            upper, made = self._applied(method, self.study.split.forget)
            found = self.study.measures.measure(upper, self._reference("retrained")["questions"])
            entry = self.store.save(recipe, {**found, **made}, None)
            self._say(name, entry)
        return entry

    def _say(self, name: str, entry: Entry) -> None:
        m = entry["measures"]
        self.study.log(
            f"seed {self.seed}, {name}: forget quality {m['forget_quality']:.2g}, utility {m['utility']:.3f} after "
            f"{entry['seconds']:.0f} s"
        )

    def _applied(self, method: Method | Pipeline, forget: Sequence[Question]) -> tuple[nn.Module, dict[str, Any]]:
        """The model that a method makes of the original one, and its outcome, with the seconds of its factors."""
        original, seconds = self._model("original"), 0.0
        if isinstance(method, FromFactors):
            method, seconds = replace(method, factors=self._solved.factors), self._solved.seconds
        outcome = replace(method, seed=self.seed, progress=self.study.progress)(
            original, self._request(forget, isinstance(method, IDK))
        )
        outcome.seconds += seconds
        return outcome.model, describe_outcome(outcome)

    def _request(self, forget: Sequence[Question], refused: bool) -> Request:
        """Some questions to forget, or to refuse, beside as many that stay."""
        study, gone = self.study, set(forget)
        stays = [q for q in study.split.learned if q not in gone]
        drawn = some_of(stays, len(forget), torch.Generator().manual_seed(self.seed), shuffled=True)
        kept = study.inputs([q.pair for q in drawn])
        data = dataset_of([*study.inputs([q.pair for q in forget]), *kept])
        if not refused:
            return Request.remove(data, range(len(forget)))
        answers = [(q.question, REFUSALS[i % len(REFUSALS)]) for i, q in enumerate(forget)]
        return Request(data, torch.arange(len(forget)), dataset_of([*study.inputs(answers), *kept]))

    @cached_property
    def _solved(self) -> Solved:
        """Factors of the original model, fitted once for all methods and trials that take them."""
        study, start = self.study, time.perf_counter()
        n, generator = FITTED * len(study.split.forget), torch.Generator().manual_seed(self.seed + 1)
        drawn = some_of(study.split.learned, n, generator, shuffled=True)
        study.log(f"seed {self.seed}: fitting Kronecker factors")
        factors = EKFAC().fit(
            self._model("original"),
            causal_lm(),
            dataset_of(study.inputs([q.pair for q in drawn])),
            batch_size=study.training.batch_size,
            generator=torch.Generator().manual_seed(self.seed),
            progress=study.progress,
        )
        return Solved(factors, time.perf_counter() - start)

    def _reference(self, name: str) -> Entry:
        """The trial of a model that is trained."""
        recipe = self.study.recipe(name, self.seed, None)
        entry = self.store.find(recipe)
        if entry is None:
            entry = self._train(name, recipe)
        return entry

    def _model(self, name: str) -> nn.Module:
        if name not in self._models:
            self._reference(name)
        if name not in self._models:
            recipe = self.study.recipe(name, self.seed, None)
            self._models[name] = self.store.load(recipe, self.study.halves.upper().to(self.study.device))
        return self._models[name]

    def _train(self, name: str, recipe: Recipe) -> Entry:
        study, split = self.study, self.study.split
        left_out = {"original": (), "retrained": split.forget, "validation": split.validation}[name]
        gone = set(left_out)
        learned = [q.pair for q in split.learned if q not in gone]
        study.log(f"seed {self.seed}: training, {name} ({study.training.epochs} epochs, {len(learned):,} questions)")
        upper = study.halves.upper().to(study.device)
        training = replace(study.training, seed=self.seed + ADDED[name], progress=study.progress)
        seconds = training.run(upper, dataset_of(study.inputs(learned)))
        self._models[name] = upper.eval()
        if name == "validation":
            found: dict[str, Any] = {"quick": study.validation.quick(upper)}
        else:
            other = None if name == "retrained" else self._reference("retrained")["questions"]
            found = study.measures.measure(upper, other)
        entry = self.store.save(recipe, {**found, "seconds": seconds}, upper)
        if "measures" in found:
            self._say(name, entry)
        return entry


def measures_of(
    study: TofuStudy,
    forget: Sequence[Question],
    stays: Mapping[str, Sequence[Question]],
    asked: int,
    unseen: Sequence[Question] = (),
) -> TofuMeasures:
    """The measures of a study with these questions, at most so many to forget in writing."""
    return TofuMeasures(study.halves, study.tokenizer, forget=forget, **stays, unseen=unseen, asked=asked, seed=0)
