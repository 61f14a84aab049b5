"""Forgetting a class or a random share of the training images: which method comes closest to retraining?"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor, nn

from unlearnx import __version__
from unlearnx._data import materialize
from unlearnx._memory_order import ImageOrder
from unlearnx.curvature import ConjugateGradient
from unlearnx.data import Splits, load_cifar10, load_digits
from unlearnx.experiments import showcase
from unlearnx.experiments.comparison import applied, interval, pareto_front, summarise, winner
from unlearnx.experiments.evaluation import ATTACKS, Sets, StudyEvaluation, described
from unlearnx.experiments.outcomes import describe_outcome
from unlearnx.experiments.recipes import from_recipe, to_recipe
from unlearnx.experiments.report import environment
from unlearnx.experiments.run_store import Entry, Recipe, RunStore, differing
from unlearnx.experiments.runs import default_device, describe, room_for, slug, untrained
from unlearnx.methods import (
    KFADE,
    SCRUB,
    SSD,
    BadTeacher,
    FineTune,
    FirstOrder,
    FisherMasking,
    GradientAscent,
    Method,
    NegGrad,
    Pipeline,
    RandomPerturbation,
    Request,
    SalUn,
    SecondOrder,
    StochasticTeacher,
)
from unlearnx.metrics.membership import MIN_CROSS_VALIDATION_SAMPLES as MIN_IMAGES
from unlearnx.models import Training, digits_cnn, fast_dtype, vgg_cifar10

Methods = dict[str, Method | Pipeline]

REFERENCES = {"original": 0, "retrained": 1000}  # models that are trained, and what is added to the seed of each
DEFAULT_METHODS = ("ssd", "fine-tune", "second-order")  # of `unlearnx run`; `unlearnx compare` takes all


@dataclass(frozen=True)
class Sweep:
    """Values to try for one parameter of one method."""

    method: str
    parameter: str
    values: tuple[float, ...]

    @classmethod
    def parse(cls, text: str, methods: Methods) -> Sweep:
        """Parse ``ssd.alpha=2,5,10``, or ``alpha=2,5,10`` if only one of the methods has such a parameter.

        Raises:
            ValueError: the text has another form, no method or more than one has the parameter, or a value is not valid
                for it.
        """
        target, _, listed = text.partition("=")
        named, _, parameter = target.rpartition(".")
        try:
            values = tuple(_number(value) for value in listed.split(","))
        except ValueError:
            raise ValueError(f"sweep is {text!r}, expected numbers as in ssd.alpha=2,5,10") from None
        owners = [name for name, method in methods.items() if named in ("", name) and parameter in _parameters(method)]
        if len(owners) != 1:
            having = f"{' and '.join(owners)} have" if owners else f"none of {', '.join(methods)} has"
            raise ValueError(f"sweep is {text!r}, but {having} a parameter {parameter!r}; name one, METHOD.PARAMETER=")
        if not all(float in _parameters(methods[owners[0]])[parameter] or isinstance(v, int) for v in values):
            raise ValueError(f"sweep is {text!r}, expected integers for {parameter}")
        sweep = cls(owners[0], parameter, values)
        sweep.variants(methods)  # raises an error if a value is not valid
        return sweep

    def variants(self, methods: Methods) -> Methods:
        """The method with each of the values, by the names of their trials."""
        method = methods[self.method]
        changes: list[dict[str, Any]] = [{self.parameter: value} for value in self.values]
        names = [f"{self.method} {self.parameter}={value}" for value in self.values]
        return {name: replace(method, **change) for name, change in zip(names, changes, strict=True)}


def _number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _parameters(method: Method | Pipeline) -> dict[str, list[Any]]:
    """The parameters that are numbers, and of which types."""
    hints = get_type_hints(type(method))
    allowed = {f.name: get_args(hints[f.name]) or (hints[f.name],) for f in fields(method) if f.name != "seed"}
    kinds: dict[str, list[Any]] = {
        name: [kind for kind in (int, float) if kind in types] for name, types in allowed.items()
    }
    return {name: found for name, found in kinds.items() if found}


@dataclass
class ForgetStudy:
    """One study of forgetting: data, network, training, what to forget, and the methods to compare.

    Attributes:
        name: of the experiment.
        splits: the data.
        network: builds an untrained model.
        training: how models are trained and retrained.
        methods: the methods, by their names in the report.
        forget_class: number of the class to forget; None for a random share.
        share: share of the training images to forget, other ones for each seed; None for a class.
        sweeps: of parameters of the methods.
        options: arguments of the experiment's function that load the same data.
        progress: show progress bars.
        device: where networks are trained and unlearn.
        log: is called with a line for each step.

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
    sweeps: list[Sweep] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    progress: bool = True
    device: torch.device = field(default_factory=default_device)
    log: Callable[[str], None] = field(default=lambda line: None)

    def __post_init__(self) -> None:
        if (self.forget_class is None) == (self.share is None):
            raise ValueError(
                f"forget_class is {self.forget_class} and share {self.share}, expected exactly one of them"
            )
        if self.share is not None and not 0 < self.share < 1:
            raise ValueError(f"share is {self.share}, expected a number between 0 and 1")
        files = [slug(name) for name in (*REFERENCES, *self.methods)]
        if len(set(files)) < len(files):
            raise ValueError(f"methods: some names give the same file, expected different ones, got {', '.join(files)}")

    def _check_sizes(self) -> None:
        """Refuse sets that are too small to be measured, before any model is trained."""
        parts = Sets.make(self.splits, self.forget(0), self.forget_class).parts
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
        self._check_sizes()
        for name, method in self.methods.items():
            self.recipe(name, seeds[0], method)  # so that a method that cannot be written down fails before training
        store = RunStore(folder, self.log)
        finished = [_SeedRun(self, seed, store).run() for seed in seeds]
        runs, variants = zip(*finished, strict=True)
        summary, candidates = summarise(runs), applied(runs)
        best = winner(summary, candidates)
        class_name = None if self.forget_class is None else self.splits.classes[self.forget_class]
        return {
            "experiment": self.name,
            "classes": self.splits.classes,
            "train_images": len(self.splits.train_x),
            "test_images": len(self.splits.test_x),
            "epochs": self.training.epochs,
            "request": self._request(class_name, seeds[0]),
            "methods": {name: describe(method) for name, method in self.methods.items()},
            "measures": described(class_name),
            "runs": list(runs),
            "summary": summary,
            "winner": best,
            "pareto": pareto_front(summary, candidates),
            "sweeps": [self._swept(sweep, variants) for sweep in self.sweeps],
            "attacks": _attacks(runs[0]),
            **_SeedRun(self, seeds[0], store).show(best),
        }

    def forget(self, seed: int) -> Tensor:
        """Indices of the training images to forget, int64, ascending."""
        if self.forget_class is not None:
            return (self.splits.train_y == self.forget_class).nonzero().flatten()
        assert self.share is not None
        n = len(self.splits.train_y)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        return order[: max(1, round(self.share * n))].sort().values

    def recipe(self, model: str, seed: int, method: Method | Pipeline | None = None) -> Recipe:
        """Everything that the numbers of a model depend on, and the options that load the data.

        Raises:
            ValueError: the network, the training or the method cannot be written down.
        """
        return {
            "experiment": self.name,
            "options": self.options,
            "request": {"forget_class": self.forget_class, "share": self.share},
            "network": to_recipe(self.network, "network"),
            "training": to_recipe(self.training, "training"),
            "data": self._checksum,
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
        return {
            "kind": "random" if class_name is None else "class",
            "class": self.forget_class,
            "class_name": class_name,
            "share": self.share,
            "forget_images": n,
            "description": what,
        }

    def _swept(self, sweep: Sweep, variants: Sequence[dict[str, Entry]]) -> dict[str, Any]:
        points = []
        for value, name in zip(sweep.values, sweep.variants(self.methods), strict=True):
            entries = [by_name[name] for by_name in variants]
            means = {key: interval([e["measures"][key] for e in entries])["mean"] for key in entries[0]["measures"]}
            everywhere = all(e["applied"] for e in entries)
            points.append({"value": value, "measures": means, "applied": everywhere})
        return {"method": sweep.method, "parameter": sweep.parameter, "points": points}


class _SeedRun:
    """The trials of one seed. Models are loaded or trained when they are first needed."""

    def __init__(self, study: ForgetStudy, seed: int, store: RunStore):
        self.study, self.seed, self.store = study, seed, store
        self.sets = Sets.make(study.splits, study.forget(seed), study.forget_class)
        self.request = Request.remove((study.splits.train_x, study.splits.train_y), self.sets.parts["forget"])

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
        return {
            "confidences": showcase.confidences(models, self.sets, self.study.training.autocast),
            "saliency": None if best is None else showcase.saliency_maps(models, best, self.sets),
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


def repeat(
    recipe: Recipe,
    folder: Path,
    *,
    beside: Path,
    root: Path | None = None,
    progress: bool = True,
    log: Callable[[str], None] = lambda line: None,
) -> Entry:
    """Make the trial of a recipe again; returns the new trial.

    Args:
        recipe: of the trial.
        folder: of the new run. If it holds the trial already, that one is returned.
        beside: folder of the original and the retrained model. If they are not there, or were made by another recipe,
            they are trained.
        root: folder of the data, if it has moved.
        progress: show progress bars.
        log: is called with a line for each step.

    Raises:
        ValueError: the recipe is not of a study of forgetting, is not valid, or belongs to the run in `folder`.
    """
    study = replace(_study_of(recipe, root), progress=progress, log=log)
    store, name, seed = RunStore(folder, log), recipe["model"], recipe["seed"]
    method = study.methods.get(name)
    again = study.recipe(name, seed, method)
    if store.file(again).parent.resolve() == beside.resolve():
        raise ValueError(f"folder: {folder} is the run that the recipe belongs to, expected another one")
    if other := differing(recipe, again):
        log(f"seed {seed}, {name}: recorded with a different {', '.join(other)}")
    if name not in REFERENCES:
        for reference in REFERENCES:
            store.adopt(study.recipe(reference, seed), beside)
    return _SeedRun(study, seed, store).trial(name, method)


def _study_of(recipe: Recipe, root: Path | None) -> ForgetStudy:
    """A study with only the model of a recipe."""
    if recipe["experiment"] not in STUDIES:
        raise ValueError(f"recipe: the experiment is {recipe['experiment']!r}, expected one of {', '.join(STUDIES)}")
    options = recipe["options"] if root is None else {**recipe["options"], "root": root}
    method = from_recipe(recipe["method"])
    try:
        return replace(
            STUDIES[recipe["experiment"]](**options),
            network=from_recipe(recipe["network"]),
            training=from_recipe(recipe["training"]),
            methods={} if method is None else {recipe["model"]: method},
            **recipe["request"],
        )
    except TypeError as error:
        raise ValueError(f"recipe: {error}") from error


def _digits_methods(forget_class: int | None) -> Methods:
    """The methods with their arguments for a class, or for a random share (None); chosen with the seeds 0 and 1."""
    masking = FisherMasking(0.005) if forget_class is not None else FisherMasking(0.005, max_increase=math.inf)
    gradient, newton = FirstOrder(params="last:2"), SecondOrder(ConjugateGradient(), damping=1e-2, params="last:2")
    if forget_class is None:  # no weights of the last layer represent a random share of the images
        gradient = FirstOrder(tau=3e-3, steps=20)
        newton = replace(
            newton, solver=ConjugateGradient(iterations=10), params=None, step=10.0, steps=1, curvature_samples=500
        )
    return {
        "ssd": SSD(alpha="adaptive"),
        "fisher-masking": masking if forget_class is not None else Pipeline([masking, FineTune(epochs=2)]),
        "fine-tune": FineTune(epochs=5, lr=2e-3),
        "first-order": gradient,
        "second-order": newton,
        "gradient-ascent": GradientAscent(epochs=5) if forget_class is not None else GradientAscent(epochs=2),
        "k-fade": KFADE(),
        "neg-grad": NegGrad(epochs=2, weight=0.99 if forget_class is not None else 0.9),
        "random-perturbation": Pipeline([RandomPerturbation(0.5), FineTune(epochs=4, lr=2e-3)]),
        "stochastic-teacher": StochasticTeacher(epochs=2),
        "bad-teacher": BadTeacher(epochs=2),
        "scrub": SCRUB(epochs=4),
        "salun": SalUn(epochs=3),
    }


def _cifar_methods(forget_class: int | None) -> Methods:
    """The methods with their arguments for a class, or for a random share (None)."""
    fast = fast_dtype(default_device())
    masking = FisherMasking(0.005, max_increase=math.inf, autocast=fast)
    return {
        "ssd": SSD(alpha="adaptive", autocast=fast),
        "fisher-masking": Pipeline([masking, FineTune(epochs=1, autocast=fast)]),
        "fine-tune": FineTune(epochs=2, lr=2e-3, batch_size=128, autocast=fast),
        "fine-tune-anchored": FineTune(epochs=2, lr=2e-3, anchor=1e-2, batch_size=128, autocast=fast),
        "first-order": FirstOrder(params="last:2"),
        "second-order": SecondOrder(ConjugateGradient(), damping=1e-2, params="last:2", step=1.0, steps=1),
        "gradient-ascent": GradientAscent(epochs=1, lr=1e-4, autocast=fast),
        "k-fade": KFADE(),
        "neg-grad": NegGrad(epochs=1, batch_size=128, autocast=fast),
        "random-perturbation": Pipeline(
            [RandomPerturbation(0.2), FineTune(epochs=1, lr=2e-3, batch_size=128, autocast=fast)]
        ),
        "stochastic-teacher": StochasticTeacher(erase_epochs=1, epochs=1, batch_size=128, autocast=fast),
        "bad-teacher": BadTeacher(epochs=1, batch_size=128, autocast=fast),
        "scrub": SCRUB(epochs=2, max_epochs=1, batch_size=128, autocast=fast),
        "salun": SalUn(epochs=1, batch_size=128, autocast=fast),
    }


def _study(
    name: str,
    splits: Splits,
    network: Callable[[], nn.Module],
    training: Training,
    table: Callable[[int | None], Methods],
    *,
    forget_class: int | None = None,
    methods: Sequence[str] | None = None,
    sweep: Sequence[str] = (),
    preset: str = "default",
    **settings: Any,
) -> ForgetStudy:
    """A study of those methods of a table that are named in `methods` or in a sweep."""
    if preset != "default":
        raise ValueError(f"preset is {preset!r}, {name} has only 'default'")
    offered = table(forget_class)
    swept = [owner for text in sweep if (owner := text.partition("=")[0].rpartition(".")[0])]
    names = list(dict.fromkeys([*(offered if methods is None else methods), *swept]))
    if unknown := [wanted for wanted in names if wanted not in offered]:
        raise ValueError(f"methods: {unknown[0]!r} is unknown, expected names among {', '.join(offered)}")
    chosen = {wanted: offered[wanted] for wanted in names}
    sweeps = [Sweep.parse(text, chosen) for text in sweep]
    return ForgetStudy(name, splits, network, training, chosen, forget_class, sweeps=sweeps, **settings)


def _class_number(splits: Splits, wanted: str | int) -> int:
    if wanted in splits.classes:
        return splits.classes.index(str(wanted))
    if str(wanted).isdigit() and int(wanted) < len(splits.classes):
        return int(wanted)
    raise ValueError(f"forget_class is {wanted!r}, expected one of {', '.join(splits.classes)}, or its number")


def _digits(name: str, splits: Splits, epochs: int | None, **settings: Any) -> ForgetStudy:
    training = Training(60 if epochs is None else epochs, lr=2e-3)
    return _study(name, splits, digits_cnn, training, _digits_methods, **settings)


def _cifar(name: str, splits: Splits, epochs: int | None, **settings: Any) -> ForgetStudy:
    training = Training(14 if epochs is None else epochs, lr=2e-3, autocast=fast_dtype(default_device()))
    return _study(name, splits, vgg_cifar10, training, _cifar_methods, **settings)


def forget_class_digits(*, forget_class: str | int = "1", epochs: int | None = None, **choice: Any) -> ForgetStudy:
    """Forget one class of the digits that come with the package.

    Args:
        forget_class: name or number of the class.
        epochs: of each training; 60 where not given.
        choice: options of all studies of forgetting: ``methods``, the names of those to compare, all where not given;
            ``sweep``, texts such as ``"ssd.alpha=2,5,10"``, see :meth:`Sweep.parse`; ``preset``, only ``"default"``;
            ``progress``, whether to show progress bars.

    Raises:
        ValueError: there is no such class, method, parameter or preset.
    """
    splits = load_digits()
    number = _class_number(splits, forget_class)
    return _digits("forget-class-digits", splits, epochs, forget_class=number, **choice)


def forget_random_digits(*, share: float = 0.1, epochs: int | None = None, **choice: Any) -> ForgetStudy:
    """Forget a random share of the digits that come with the package, another one for each seed.

    Args:
        share: of the training images.
        epochs: of each training; 60 where not given.
        choice: as for :func:`forget_class_digits`.

    Raises:
        ValueError: the share is not between 0 and 1, or there is no such method, parameter or preset.
    """
    return _digits("forget-random-digits", load_digits(), epochs, share=share, **choice)


def forget_class_cifar(
    root: str | Path,
    *,
    forget_class: str | int = "automobile",
    limit: int | None = None,
    epochs: int | None = None,
    **choice: Any,
) -> ForgetStudy:
    """Forget one class of CIFAR-10, with the VGG of the poisoning study.

    Args:
        root: folder or archive of CIFAR-10, see :func:`unlearnx.data.load_cifar10`.
        forget_class: name or number of the class.
        limit: training images to use.
        epochs: of each training; 14 where not given.
        choice: as for :func:`forget_class_digits`.

    Raises:
        FileNotFoundError: there is no CIFAR-10.
        ValueError: there is no such class, method, parameter or preset.
    """
    splits = load_cifar10(root, limit=limit)
    number = _class_number(splits, forget_class)
    options = {"root": str(root), "limit": limit}
    return _cifar("forget-class-cifar", splits, epochs, forget_class=number, options=options, **choice)


def forget_random_cifar(
    root: str | Path, *, share: float = 0.1, limit: int | None = None, epochs: int | None = None, **choice: Any
) -> ForgetStudy:
    """Forget a random share of CIFAR-10, another one for each seed, with the VGG of the poisoning study.

    Args:
        root: folder or archive of CIFAR-10, see :func:`unlearnx.data.load_cifar10`.
        share: of the training images.
        limit: training images to use.
        epochs: of each training; 14 where not given.
        choice: as for :func:`forget_class_digits`.

    Raises:
        FileNotFoundError: there is no CIFAR-10.
        ValueError: the share is not between 0 and 1, or there is no such method, parameter or preset.
    """
    splits = load_cifar10(root, limit=limit)
    options = {"root": str(root), "limit": limit}
    return _cifar("forget-random-cifar", splits, epochs, share=share, options=options, **choice)


STUDIES: dict[str, Callable[..., ForgetStudy]] = {
    "forget-class-digits": forget_class_digits,
    "forget-random-digits": forget_random_digits,
    "forget-class-cifar": forget_class_cifar,
    "forget-random-cifar": forget_random_cifar,
}
