"""The study: a language model that learned about authors forgets some of them, beside one that never read of these."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unlearnx import __version__
from unlearnx.data.tofu import QUESTIONS, Question, Tofu, TofuSplit, split_tofu
from unlearnx.experiments.comparison import medians
from unlearnx.experiments.recipes import sources
from unlearnx.experiments.run_store import Recipe, RunStore
from unlearnx.experiments.runs import check_files, default_device, describe, slug
from unlearnx.experiments.study import Prepared
from unlearnx.experiments.text_samples import Sample, tokens_of
from unlearnx.experiments.tofu.choice import RULE
from unlearnx.experiments.tofu.files import write_files
from unlearnx.experiments.tofu.halves import Halves
from unlearnx.experiments.tofu.measures import STAY, TofuMeasures, described
from unlearnx.experiments.tofu.methods import Candidate
from unlearnx.experiments.tofu.texts import some_of, text_of
from unlearnx.experiments.tofu.trials import ADDED, SeedTrials, measures_of
from unlearnx.methods import Method, Pipeline
from unlearnx.models import Training

KEPT = 0.95  # of the retrained model's utility, that of a method that can win


@dataclass
class TofuStudy(Prepared):
    """TOFU with a pretrained language model: fine-tuned, retrained, and unlearned by each method.

    Attributes:
        name, preset: of the experiment.
        tofu: the questions.
        authors: how many the model learns about.
        percent: of them, that are forgotten.
        load: returns the pretrained model and its tokenizer.
        blocks: how many of the model's blocks are trained, from the last on; from the number of all on, all weights.
        training: how models are fine-tuned and retrained.
        methods: by their names.
        trials: strengths that are tried of each method.
        questions: most that are measured of each set, of the forget set only in writing.
        source: what the model is loaded from, for the recipe.
        device: where models are trained and unlearn.
    """

    name: str
    preset: str
    tofu: Tofu
    authors: int
    percent: int
    load: Callable[[], tuple[Any, Any]]
    blocks: int
    training: Training
    methods: Mapping[str, Candidate]
    trials: int
    questions: int
    source: str = ""
    device: torch.device = field(default_factory=default_device)

    @cached_property
    def split(self) -> TofuSplit:
        """The questions that are learned, forgotten, and for validation."""
        return split_tofu(self.tofu, self.authors, self.percent)

    def room(self, seeds: int) -> int:
        """Bytes that a run of so many seeds writes at most: the trained models are kept, unlearned ones are not."""
        return seeds * len(ADDED) * sum(t.nbytes for t in self.halves.upper().state_dict().values())

    @cached_property
    def _loaded(self) -> tuple[nn.Module, Any]:
        model, tokenizer = self.load()
        return model.to(self.device), tokenizer

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self._loaded[1]

    @cached_property
    def halves(self) -> Halves:
        """The pretrained model, in the part that stays and the part that is trained."""
        return Halves(self._loaded[0], self.blocks)

    @cached_property
    def measures(self) -> TofuMeasures:
        """Measures of the forget set and of all that stays."""
        forget = self.split.forget
        unseen = some_of(self.split.unseen, len(forget), torch.Generator().manual_seed(0))
        return measures_of(self, forget, self._reported, self.questions, unseen)

    @cached_property
    def validation(self) -> TofuMeasures:
        """What strengths are chosen by: the validation authors, and of what stays what is not reported.

        Where all that stays is reported, some of it is read.
        """
        generator, half = torch.Generator().manual_seed(0), max(1, self.questions // 2)
        chosen = some_of(self.split.validation, self.questions, generator)
        stays = {
            name: some_of([q for q in pool if q not in self._reported[name]] or pool, half, generator)
            for name, pool in self._staying.items()
        }
        return measures_of(self, chosen, stays, half)

    @property
    def _staying(self) -> dict[str, list[Question]]:
        """The sets that are to stay as they are."""
        tofu = self.tofu
        return dict(zip(STAY, (self.split.measured, tofu.real_authors, tofu.world_facts), strict=True))

    @cached_property
    def _reported(self) -> dict[str, list[Question]]:
        """The questions of each of them that the report is about."""
        generator = torch.Generator().manual_seed(0)
        return {name: some_of(pool, self.questions, generator) for name, pool in self._staying.items()}

    def inputs(self, pairs: Sequence[tuple[str, str]]) -> list[Sample]:
        """Questions with answers as the trained part reads them, each computed once."""
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        if new:
            samples = self.halves.inputs(tokens_of([text_of(*pair) for pair in new], self.tokenizer))
            self._known.update(zip(new, samples, strict=True))
        return [self._known[pair] for pair in pairs]

    @cached_property
    def _known(self) -> dict[tuple[str, str], Sample]:
        return {}

    def check(self) -> None:
        """Refuse what does not fit before any work: authors, files of the same name, and strengths out of range.

        Raises:
            ValueError: something does not.
        """
        assert self.split
        check_files([*ADDED, *self.methods])
        for name, candidate in self.methods.items():
            sources(candidate.method)
            try:
                candidate.tried(self.trials)
            except ValueError as error:
                raise ValueError(f"methods: {name} cannot be tried at {self.trials} strengths: {error}") from error

    def recipe(self, model: str, seed: int, method: Method | Pipeline | None) -> Recipe:
        """What makes a model, and its numbers, again."""
        own = [] if method is None else sources(method)
        learned = repr([q.pair for q in self.split.learned]).encode()
        return {
            "experiment": self.name,
            "options": {},
            "request": {
                "authors": self.authors,
                "percent": self.percent,
                "questions": self.questions,
                "trials": self.trials,
            },
            "network": {"source": self.source, "blocks": self.blocks},
            "training": describe(self.training),
            "data": hashlib.sha256(learned).hexdigest()[:16],
            "model": model,
            "method": None if method is None else describe(method),
            **({"sources": own} if own else {}),
            "seed": seed,
            "versions": {"unlearnx": __version__, "torch": torch.__version__},
        }

    def write(self, store: RunStore, seed: int, entries: Mapping[str, Mapping[str, Any]]) -> None:
        """Write open-unlearning's files of all models of a seed, under ``open-unlearning/seed-SEED/MODEL``."""
        folder = store.folder.parent / "open-unlearning" / f"seed-{seed}"
        for name, entry in entries.items():
            write_files(folder / slug(name), entry["measures"], entry["questions"])

    def run(self, seeds: list[int], folder: Path) -> dict[str, Any]:
        """Run the study for each seed; returns the content of result.json.

        Strengths are chosen once, with the models of the first seed. Finished trials are read, not made again.
        """
        store = RunStore(folder, self.log)
        trials = [SeedTrials(self, seed, store) for seed in seeds]
        chosen = trials[0].choose()
        runs = []
        while trials:
            runs.append(trials.pop(0).run(chosen))
        taken, model = runs[0]["retrained"]["measures"], self._loaded[0]
        summary = _summary(runs)
        return {
            "experiment": self.name,
            "preset": self.preset,
            "model": {
                "name": getattr(model, "name_or_path", ""),
                "parameters": sum(p.numel() for p in model.parameters()),
                "blocks": self.halves.blocks,
                "frozen": self.halves.frozen,
            },
            "authors": self.authors,
            "percent": self.percent,
            "forgotten": len(self.split.forget) // QUESTIONS,
            "learned": len(self.split.learned),
            "forget": len(self.split.forget),
            "sizes": self.measures.sizes(),
            "questions": self.questions,
            "epochs": self.training.epochs,
            "training": describe(self.training),
            "rule": RULE,
            "trials": self.trials,
            "chosen": chosen,
            "methods": {name: found["method"] for name, found in chosen.items()},
            "measures": {key: text for key, text in described().items() if key in taken},
            "runs": runs,
            "summary": summary,
            "best": winner(summary, list(self.methods)),
        }


def _summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Medians over the runs, for the original, the unlearned and the retrained models."""
    models = [{"original": run["original"], **run["methods"], "retrained": run["retrained"]} for run in runs]
    return {name: medians([run[name]["measures"] for run in models]) for name in models[0]}


def winner(summary: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> str:
    """The method of the highest forget quality among those that keep enough utility; among all if none does."""
    least = KEPT * summary["retrained"]["utility"]
    kept = [name for name in names if summary[name]["utility"] >= least]
    return max(kept or names, key=lambda name: summary[name]["forget_quality"])
