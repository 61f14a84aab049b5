"""Measures of an unlearned model, beside the original model and one that was retrained without the forget set.

:class:`StudyEvaluation` measures the models of a study, which has all data and a retrained model.
:class:`RequestEvaluation` measures a user's own model, with whatever data were given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from unlearnx import metrics
from unlearnx._batches import Nest, scores
from unlearnx._checks import model_device
from unlearnx._data import Data
from unlearnx.data import Splits
from unlearnx.experiments.runs import untrained
from unlearnx.methods import Method, Request
from unlearnx.metrics.outputs import each_batch

ATTACKS = ("salun", "ssd", "starter_kit")
TIMES = ("seconds", "runtime_ratio")  # measures that differ each time a trial is made
MAX_RELEARN_IMAGES = 256  # of the forget set: the loss on all of them is measured after each step
MAX_RELEARN_STEPS = 50

Pair = tuple[Tensor, Tensor]


def described(class_name: str | None) -> dict[str, dict[str, str]]:
    """Title, unit, ideal and meaning of every measure, including those of a forgotten class if its name is given."""
    stay = "test images" if class_name is None else "test images of the other classes"
    table = {
        "forget_accuracy": ("forget accuracy", "%", "retrained", "accuracy on the forget set"),
        "retain_accuracy": ("retain accuracy", "%", "retrained", "accuracy on the retain set"),
        "test_accuracy": ("test accuracy", "%", "retrained", f"accuracy on {stay}"),
    }
    if class_name is not None:
        note = f"accuracy on test images of class {class_name!r}"
        table["test_forgotten_accuracy"] = ("test accuracy, forgotten class", "%", "retrained", note)
    table |= {
        "ua": ("unlearning accuracy", "%", "retrained", "share of the forget set that is classified wrongly"),
        "gap": (
            "average gap",
            "%",
            "low",
            "mean distance from the retrained model in unlearning, retain and test accuracy and SalUn's attack",
        ),
        "tow": (
            "tug of war",
            "",
            "high",
            "product of one minus the distance from the retrained model in forget, retain and test accuracy",
        ),
        **_attacks("", stay),
    }
    if class_name is not None:
        table |= _attacks("_class", f"test images of class {class_name!r}")
    table |= {
        "activation_distance": (
            "activation distance",
            "",
            "low",
            "mean Euclidean distance of the probabilities from those of the retrained model on the forget set",
        ),
        "js": (
            "Jensen-Shannon divergence",
            "nats",
            "low",
            "mean divergence of the probabilities from those of the retrained model on the forget set",
        ),
        "zrf": (
            "zero retrain forgetting",
            "",
            "retrained",
            "one minus the mean divergence from an untrained network on the forget set",
        ),
        "relearn_time": (
            "relearn time",
            "",
            "retrained",
            "steps of training on the forget set until its loss is as low as before unlearning, divided by the steps "
            "that the retrained model needs",
        ),
        "seconds": ("time", "s", "low", "wall-clock time of the whole call"),
        "runtime_ratio": ("time relative to retraining", "%", "low", "that time, divided by the time of retraining"),
    }
    return {key: dict(zip(("title", "unit", "ideal", "note"), row, strict=True)) for key, row in table.items()}


def _attacks(suffix: str, others: str) -> dict[str, tuple[str, str, str, str]]:
    title = "membership attack, {}" + (", forgotten class" if suffix else "")
    notes = {
        "salun": f"share of the forget set that an SVM on confidences takes for {others}",
        "ssd": f"share of the forget set that a logistic regression on entropies tells from {others}",
        "starter_kit": f"accuracy of an attack on losses in telling the forget set from {others}",
    }
    names = {"salun": "SalUn", "ssd": "SSD", "starter_kit": "starter kit"}
    return {
        f"mia_{protocol}{suffix}": (title.format(names[protocol]), "%", "retrained", notes[protocol])
        for protocol in ATTACKS
    }


def changed(recorded: dict[str, Any], repeated: dict[str, Any]) -> list[str]:
    """The measures that differ between a recorded trial and its repetition. Times are left out: they always differ."""
    old, new = recorded.get("measures", {}), repeated["measures"]
    return [key for key in old if key not in TIMES and old[key] != new.get(key)]


@dataclass(frozen=True)
class Sets:
    """The sets of a request, as indices of images: training images come first, test images after them.

    Attributes:
        splits: the images.
        parts: indices int64 of the images by set: ``"forget"``, ``"retain"``, ``"test"``, and where a class is to be
            forgotten ``"test_forgotten"``, its test images, which are then not part of ``"test"``.
    """

    splits: Splits
    parts: dict[str, Tensor]

    @classmethod
    def make(cls, splits: Splits, forget: Tensor, forget_class: int | None) -> Sets:
        """The sets of a request to forget the training images `forget`: all of `forget_class`, unless it is None."""
        n = len(splits.train_y)
        stays = torch.ones(n, dtype=torch.bool)
        stays[forget] = False
        parts = {"forget": forget, "retain": stays.nonzero().flatten(), "test": n + torch.arange(len(splits.test_y))}
        if forget_class is not None:
            of_class = splits.test_y == forget_class
            parts |= {"test": parts["test"][~of_class], "test_forgotten": parts["test"][of_class]}
        return cls(splits, parts)

    @cached_property
    def labels(self) -> Tensor:
        """Labels of all images, int64."""
        return torch.cat([self.splits.train_y, self.splits.test_y])

    def numbers(self, part: str) -> Pair:
        """Indices and labels of a set: data for a :func:`score_table`."""
        return self.parts[part], self.labels[self.parts[part]]

    def images(self, part: str) -> Pair:
        """Images and labels of a set of training images."""
        return self.splits.train_x[self.parts[part]], self.splits.train_y[self.parts[part]]


def score_table(model: nn.Module, splits: Splits, autocast: torch.dtype | None) -> nn.Embedding:
    """A model that looks up the scores of `model` by the index of an image, so that metrics need not run it again."""
    rows = []
    for data in ((splits.train_x, splits.train_y), (splits.test_x, splits.test_y)):
        rows += each_batch((model,), data, None, autocast, lambda output, y: output.float().cpu())
    return nn.Embedding.from_pretrained(torch.cat(rows))


class StudyEvaluation:
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
        self.sets, self.autocast, self.seed = sets, autocast, seed
        self.original, self.retrained, self.retraining_seconds = original, retrained, retraining_seconds
        random = untrained(network, seed=seed + 2000, device=model_device(original)).eval()
        self._random, self._reference = self._scores(random), self._scores(retrained)
        self._goal = self._from_scores(self._reference)

    def measure(self, model: nn.Module, seconds: float) -> dict[str, Any]:
        """The ``measures`` of a model that took `seconds` to make, and a ``warning`` if it forgot too much."""
        scores = self._scores(model)
        measures = self._from_scores(scores)
        forget = self.sets.numbers("forget")
        measures["ua"] = 1 - measures["forget_accuracy"]
        measures["gap"] = metrics.gap(_gap_measures(measures), _gap_measures(self._goal))
        measures["tow"] = metrics.tug_of_war(_three(measures), _three(self._goal))
        measures["activation_distance"] = metrics.activation_distance(scores, self._reference, forget)
        measures["js"] = metrics.js_divergence(scores, self._reference, forget)
        measures["zrf"] = metrics.zrf(scores, self._random, forget)
        measures["relearn_time"] = self._relearn_time(model)
        measures["seconds"] = seconds
        measures["runtime_ratio"] = metrics.runtime_ratio(seconds, self.retraining_seconds)
        return {"measures": measures, "warning": metrics.over_forgetting(scores, self._reference, forget)}

    def _scores(self, model: nn.Module) -> nn.Embedding:
        return score_table(model, self.sets.splits, self.autocast)

    def _from_scores(self, scores: nn.Module) -> dict[str, float]:
        """Accuracies on all parts, and every attack."""
        sets = {part: self.sets.numbers(part) for part in self.sets.parts}
        accuracies = {f"{part}_accuracy": metrics.accuracy(scores, data) for part, data in sets.items()}
        attacks = {
            f"mia_{protocol}{suffix}": metrics.mia(
                scores, forget=sets["forget"], retain=sets["retain"], test=sets[others], protocol=protocol
            )
            for others, suffix in (("test", ""), ("test_forgotten", "_class"))
            if others in sets
            for protocol in ATTACKS
        }
        return accuracies | attacks

    def _relearn_time(self, model: nn.Module) -> float:
        images, labels = self.sets.images("forget")
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


class RequestEvaluation:
    """Measures models on the sets of a request. Each model runs over the data once; all measures share its scores.

    Attributes:
        notes: sentences on what could not be measured, and why.
        sizes: samples by set, once a model has been measured.
    """

    def __init__(
        self,
        method: Method,
        request: Request,
        test: tuple[Nest, Tensor] | None,
        forget_class: int | None,
        *,
        returns_tensor: bool,
    ):
        self.method, self.request, self.test, self.forget_class = method, request, test, forget_class
        self._known = _KnownScores(returns_tensor)
        self.notes: list[str] = []
        self.sizes: dict[str, int] = {}
        if test is None:
            self.notes.append("No test data were given: there is no test accuracy, and no membership attack.")

    def measure(self, model: nn.Module) -> dict[str, float | None]:
        """Accuracies and mean losses by set, and membership attacks."""
        known, scored = self._known, self._scored(model)
        self.sizes = {name: len(y) for name, (_, y) in scored.items() if name != "all_test"}
        measures: dict[str, float | None] = {}
        for name, pair in scored.items():
            if name != "all_test":
                measures[f"{name}_accuracy"] = metrics.accuracy(known, pair)
                measures[f"{name}_loss"] = metrics.mean_loss(known, self.method.loss_fn, pair)
        if self.test is not None:
            for attack in ATTACKS:
                measures[f"mia_{attack}"] = self._attack(known, scored, attack)
        return measures

    def distances(self, models: Mapping[str, nn.Module]) -> dict[str, dict[str, float]]:
        """Distances of predictions on the forget set, for each pair of models."""
        names = list(models)
        return {
            f"{a}, {b}": {
                "activation_distance": metrics.activation_distance(
                    models[a], models[b], self._forget, batch_size=self._step
                ),
                "js": metrics.js_divergence(models[a], models[b], self._forget, batch_size=self._step),
            }
            for i, a in enumerate(names)
            for b in names[i + 1 :]
        }

    def gaps(self, measures: Mapping[str, Mapping[str, float | None]]) -> dict[str, Any] | None:
        """Gaps to the retrained model, and the measures that they average; None without a retrained model."""
        if "retrained" not in measures:
            return None
        rows = {name: _gap_measures(row) for name, row in measures.items()}
        common = [key for key in rows["retrained"] if all(key in row for row in rows.values())]
        found = {
            name: metrics.gap({key: row[key] for key in common}, {key: rows["retrained"][key] for key in common})
            for name, row in rows.items()
            if name != "retrained"
        }
        return {**found, "over": common}

    def warning(self, models: Mapping[str, nn.Module]) -> str | None:
        """A warning where the model forgot more than retraining would have; else None."""
        if "after" not in models or "retrained" not in models:
            return None
        return metrics.over_forgetting(models["after"], models["retrained"], self._forget, batch_size=self._step)

    @property
    def _forget(self) -> Data:
        return self.request.forget_set

    @property
    def _step(self) -> int:
        return self.method.batch_size

    def _scored(self, model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
        """Scores and labels by set. The test data are split into the class to forget and the other classes."""
        rows, y = scores_of(model, self.request.dataset, self._step)
        forget, retain = self.request.forget, self.request.retain
        sets = {"forget": (rows[forget], y[forget]), "retain": (rows[retain], y[retain])}
        if self.test is None:
            return sets
        rows, y = scores_of(model, self.test, self._step)
        sets["all_test"] = rows, y
        goes = y == self.forget_class if self.forget_class is not None else torch.zeros_like(y, dtype=torch.bool)
        for name, chosen in (("test", ~goes), ("test_forgotten", goes)):
            if chosen.any():
                sets[name] = rows[chosen], y[chosen]
        return sets

    def _attack(self, model: nn.Module, sets: dict[str, tuple[Tensor, Tensor]], attack: str) -> float | None:
        unseen = "all_test"
        if attack == "starter_kit" and self.forget_class is not None:
            unseen = "test_forgotten"  # against other classes, the attack would only tell the classes apart
        try:
            if unseen not in sets:
                raise ValueError("test: has no samples of the class to forget")
            return metrics.mia(
                model,
                forget=sets["forget"],
                retain=sets["retain"],
                test=sets[unseen],
                protocol=attack,
                seed=self.method.seed,
            )
        except ValueError as error:  # too few samples, as a rule
            note = f"The membership attack {attack} could not be run: {error}."
            if note not in self.notes:
                self.notes.append(note)
            return None


class _KnownScores(nn.Module):
    """A model whose input are scores, which it returns: so metrics can be computed from known scores.

    It returns them as the models do that they are of: by themselves, or as the ``logits`` of an object.
    """

    def __init__(self, returns_tensor: bool) -> None:
        super().__init__()
        self.returns_tensor = returns_tensor
        self.place = nn.Parameter(torch.empty(0))  # metrics take the device from a parameter

    def forward(self, scores: Tensor) -> Tensor | _Logits:
        return scores if self.returns_tensor else _Logits(logits=scores)


class _Logits(dict[str, Tensor]):
    """Scores as losses of one's own read them of models of transformers: by attribute or by key."""

    @property
    def logits(self) -> Tensor:
        return self["logits"]


def scores_of(model: nn.Module, data: Data, batch_size: int) -> tuple[Tensor, Tensor]:
    """Scores (N, classes) and labels (N,), on the CPU."""
    parts = each_batch((model,), data, batch_size, None, lambda output, y: (scores(output).cpu(), y.cpu()))
    found, y = zip(*parts, strict=True)
    return torch.cat(found), torch.cat(y)


def _gap_measures(measures: Mapping[str, float | None]) -> dict[str, float]:
    """The measures that a gap averages, as far as they are known."""
    forget = measures["forget_accuracy"]
    found = {
        "ua": None if forget is None else 1 - forget,
        "ra": measures["retain_accuracy"],
        "ta": measures.get("test_accuracy"),
        "mia": measures.get("mia_salun"),
    }
    return {name: value for name, value in found.items() if value is not None}
