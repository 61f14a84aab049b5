"""The study: models that forgot, each beside one that was retrained without the forget set."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unlearnx import __version__
from unlearnx.data import Splits
from unlearnx.experiments.comparison import applied, pareto_front, summarise, winner
from unlearnx.experiments.evaluation import Sets
from unlearnx.experiments.forget.methods import Methods
from unlearnx.experiments.forget.quality import FEWEST, quality
from unlearnx.experiments.forget.references import TrainedModels
from unlearnx.experiments.forget.sweeps import Sweep
from unlearnx.experiments.forget.trials import REFERENCES, SeedTrials
from unlearnx.experiments.measures import ATTACKS, described
from unlearnx.experiments.recipes import to_recipe
from unlearnx.experiments.run_store import Recipe, RunStore
from unlearnx.experiments.runs import check_files, default_device, describe, room_for
from unlearnx.experiments.study import Prepared
from unlearnx.experiments.weights import Weights
from unlearnx.methods import Method, Pipeline
from unlearnx.metrics.membership import MIN_CROSS_VALIDATION_SAMPLES as MIN_IMAGES
from unlearnx.models import Training


@dataclass
class ForgetStudy(Prepared):
    """One study of forgetting: data, network, training, what to forget, and the methods to compare.

    Attributes:
        name: of the experiment.
        splits: the data.
        network: builds an untrained model.
        training: how models are trained and retrained.
        methods: the methods, by their names in the report.
        forget_class: number of the class to forget; None for a random share.
        share: share of the training images to forget, other ones for each seed; None for a class.
        finer: the same images with the classes that `forget_class` is one of, where these divide those of `splits`.
        forget_seed: seed that the random share is drawn with for every run; None for the run's own.
        models: files of trained models; those that they lack are trained.
        attack: membership attack that the gap averages, ``"salun"`` or ``"ssd"``.
        slow_measures: whether the report has ``zrf`` and ``relearn_time``, which cost as much as a quick method.
        budget: most gradients that a method should evaluate, as a share of retraining's; None for any number.
        preset: name of the protocol, for the report.
        published: results that the report shows beside these.
        sweeps: of parameters of the methods.
        options: arguments of the experiment's function that load the same data.
        device: where networks are trained and unlearn.

    Raises:
        ValueError: not exactly one of `forget_class` and `share` is given, or two models would have the same file.
    """

    name: str
    splits: Splits
    network: Callable[[], nn.Module]
    training: Training
    methods: Methods
    forget_class: int | None = None
    share: float | None = None
    finer: Splits | None = None
    forget_seed: int | None = None
    models: TrainedModels | None = None
    attack: str = "salun"
    slow_measures: bool = True
    budget: float | None = None
    preset: str = "default"
    published: list[dict[str, Any]] = field(default_factory=list)
    sweeps: list[Sweep] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    device: torch.device = field(default_factory=default_device)

    def __post_init__(self) -> None:
        if (self.forget_class is None) == (self.share is None):
            raise ValueError(
                f"forget_class is {self.forget_class} and share {self.share}, expected exactly one of them"
            )
        if self.share is not None and not 0 < self.share < 1:
            raise ValueError(f"share is {self.share}, expected a number between 0 and 1")
        check_files([*REFERENCES, *self.methods])

    def check_sizes(self) -> None:
        """Refuse sets that are too small to be measured, before any model is trained.

        Raises:
            ValueError: a set is too small.
        """
        parts = self.sets(0).parts
        what = f"share is {self.share}" if self.forget_class is None else f"forget_class is {self.forget_class}"
        for part, indices in parts.items():
            if len(indices) < MIN_IMAGES:
                raise ValueError(
                    f"{what}: it gives {len(indices)} images of the {part.replace('_', ', ')} set, expected at least "
                    f"{MIN_IMAGES}, since membership attacks are cross-validated on them"
                )

    def room(self, seeds: int) -> int:
        """Bytes that a run of so many seeds writes at most."""
        swept = sum(len(sweep.values) for sweep in self.sweeps)
        return room_for(seeds * (len(REFERENCES) + len(self.methods) + swept), self.network)

    def run(self, seeds: list[int], folder: Path) -> dict[str, Any]:
        """Run the study for each seed; returns the content of result.json.

        Every model of every seed is saved as a trial under `folder` (see
        :class:`unlearnx.experiments.run_store.RunStore`). Finished trials are read, not made again.

        Raises:
            ValueError: a set is too small to be measured.
        """
        self.check_sizes()
        for name, method in self.methods.items():
            self.recipe(name, seeds[0], method)  # so that a method that cannot be written down fails before training
        store = RunStore(folder, self.log)
        finished = [SeedTrials(self, seed, store).run() for seed in seeds]
        runs, swept = zip(*finished, strict=True)
        summary, candidates = summarise(runs), applied(runs)
        best = winner(summary, candidates)
        class_name = None if self.forget_class is None else self._classes.classes[self.forget_class]
        taken = runs[0]["original"]["measures"]
        return {
            "experiment": self.name,
            "preset": self.preset,
            "classes": self.splits.classes,
            "train_images": len(self.splits.train_x),
            "test_images": len(self.splits.test_x),
            "epochs": self.training.epochs,
            "request": self._request(class_name, seeds[0]),
            "methods": {name: describe(method) for name, method in self.methods.items()},
            "measures": {key: text for key, text in described(class_name, self.attack).items() if key in taken},
            "runs": list(runs),
            "summary": summary,
            "winner": best,
            "pareto": pareto_front(summary, candidates),
            "sweeps": [sweep.result(self.methods, swept) for sweep in self.sweeps],
            "attacks": _attacks(runs[0]),
            "budget": self._budget(runs),
            "quality": self._quality(runs, store),
            "published": self.published,
            **SeedTrials(self, seeds[0], store).show(best),
        }

    def forget(self, seed: int) -> Tensor:
        """Indices of the training images to forget, int64, ascending."""
        if self.forget_class is not None:
            return (self._classes.train_y == self.forget_class).nonzero().flatten()
        assert self.share is not None
        n = len(self.splits.train_y)
        drawn_with = seed if self.forget_seed is None else self.forget_seed
        order = torch.randperm(n, generator=torch.Generator().manual_seed(drawn_with))
        return order[: max(1, round(self.share * n))].sort().values

    def sets(self, seed: int) -> Sets:
        """What is measured on: the training images to forget and those that stay, and the test images."""
        s = self.splits
        train, test = (s.train_x, s.train_y), (s.test_x, s.test_y)
        return Sets.make(train, test, self.forget(seed), self.forget_class, self._classes.test_y)

    def file(self, name: str, seed: int) -> Path | None:
        """The file with the original or the retrained model of a seed, where it was trained before."""
        return None if self.models is None else self.models.file(name, seed)

    @property
    def _classes(self) -> Splits:
        """The images with the classes that one is forgotten of."""
        return self.splits if self.finer is None else self.finer

    def recipe(self, model: str, seed: int, method: Method | Pipeline | None = None) -> Recipe:
        """Everything that the numbers of a model depend on, and the options that load the data.

        Raises:
            ValueError: the network, the training or the method cannot be written down.
        """
        files = {reference: file for reference in REFERENCES if (file := self.file(reference, seed))}
        read = {"weights": {reference: Weights.read(file).sha256 for reference, file in files.items()}} if files else {}
        return {
            "experiment": self.name,
            "options": self.options,
            "preset": self.preset,
            "request": {"forget_class": self.forget_class, "share": self.share},
            "network": to_recipe(self.network, "network"),
            "training": to_recipe(self.training, "training"),
            "data": self._checksum,
            **read,
            "model": model,
            "method": None if method is None else to_recipe(replace(method, seed=seed), model),
            "seed": seed,
            "device": self.device.type,
            "versions": {"unlearnx": __version__, "torch": torch.__version__},
        }

    @cached_property
    def _checksum(self) -> str:
        s, checksum = self.splits, 0
        for t in (s.train_x, s.train_y, s.test_x, s.test_y):
            checksum = zlib.crc32(t.contiguous().numpy().data, checksum)
        return f"crc32 {checksum:08x}"

    def _request(self, class_name: str | None, seed: int) -> dict[str, Any]:
        n = len(self.forget(seed))
        if class_name is None:
            what = f"{n:,} images drawn at random, {100 * n / len(self.splits.train_y):.3g} % of all"
        else:
            what = f"all {n:,} images of class {class_name!r}"
        if self.finer is not None:
            label = int(self.splits.train_y[self.forget(seed)[0]])
            what += f", which are a part of {self.splits.classes[label]!r}"
        return {
            "kind": "random" if class_name is None else "class",
            "class": self.forget_class,
            "class_name": class_name,
            "share": self.share,
            "forget_images": n,
            "description": what,
        }

    def _quality(self, runs: Sequence[dict[str, Any]], store: RunStore) -> dict[str, Any] | None:
        """The competition's score, where all runs forget the same images."""
        if (self.forget_class is None and self.forget_seed is None) or len(runs) < FEWEST:
            return None
        trials = [SeedTrials(self, run["seed"], store) for run in runs]
        measured = [{"retrained": run["retrained"], "original": run["original"], **run["methods"]} for run in runs]
        names = ("retrained", "original", *self.methods)
        return quality(
            {name: [of_seed.confidences(name) for of_seed in trials] for name in names},
            {name: [row[name]["measures"] for row in measured] for name in names},
        )

    def _budget(self, runs: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """The most gradients that a method should evaluate, and the methods that needed more."""
        if self.budget is None:
            return None
        retraining = self.training.epochs * (len(self.splits.train_x) - len(self.forget(runs[0]["seed"])))
        most = int(self.budget * retraining)
        over = [n for n in self.methods if any(run["methods"][n]["gradient_evaluations"] > most for run in runs)]
        return {"share": self.budget, "gradient_evaluations": most, "over": over}


def _attacks(run: dict[str, Any]) -> dict[str, Any]:
    """Results of all membership attacks on every model of a run."""
    models = {**{name: run[name] for name in REFERENCES}, **run["methods"]}
    others = {"test": "", "test_forgotten": "_class"}
    return {
        name: {
            protocol: {
                part: entry["measures"][key]
                for part, suffix in others.items()
                if (key := f"mia_{protocol}{suffix}") in entry["measures"]
            }
            for protocol in ATTACKS
        }
        for name, entry in models.items()
    }
