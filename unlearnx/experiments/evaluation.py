"""What an unlearned model is worth, measured beside the original and a model retrained without the forget set.

:class:`StudyEvaluation` measures the models of a study, where images and their split are known.
:class:`RequestEvaluation` measures a model of the user's own, with whatever data were given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from unlearnx import metrics
from unlearnx._checks import model_device
from unlearnx._data import Data
from unlearnx.data import Splits
from unlearnx.experiments.runs import untrained
from unlearnx.methods import Method, Request
from unlearnx.metrics.outputs import each_batch

ATTACKS = ("salun", "ssd", "starter_kit")
TIMES = ("seconds", "runtime_ratio")  # measures that differ each time a trial is made
RELEARN_IMAGES = 256  # most of the forget set that is learned again: each step measures the loss on all of them
RELEARN_STEPS = 50

Pair = tuple[Tensor, Tensor]


def described(class_name: str | None) -> dict[str, dict[str, str]]:
    """Title, unit, ideal and meaning of every measure; those of a forgotten class where it has a name."""
    stay = "test images" if class_name is None else "test images of the classes that stay"
    table = {
        "forget_accuracy": ("forget accuracy", "%", "retrained", "accuracy on the images to forget"),
        "retain_accuracy": ("retain accuracy", "%", "retrained", "accuracy on the training images that stay"),
        "test_accuracy": ("test accuracy", "%", "retrained", f"accuracy on {stay}"),
    }
    if class_name is not None:
        note = f"accuracy on test images of class {class_name!r}"
        table["test_forgotten_accuracy"] = ("test accuracy, forgotten class", "%", "retrained", note)
    table |= {
        "ua": ("unlearning accuracy", "%", "retrained", "share of the images to forget that are classified wrongly"),
        "gap": (
            "average gap",
            "%",
            "low",
            "mean distance to the retrained model in unlearning, retain and test accuracy and in the attack of SalUn",
        ),
        "tow": (
            "tug of war",
            "",
            "high",
            "product over forget, retain and test accuracy of one minus the distance to the retrained model",
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
            "mean Euclidean distance of the probabilities from those of the retrained model on the images to forget",
        ),
        "js": (
            "Jensen-Shannon divergence",
            "nats",
            "low",
            "mean divergence of the probabilities from those of the retrained model on the images to forget",
        ),
        "zrf": (
            "zero retrain forgetting",
            "",
            "retrained",
            "one minus the mean divergence from an untrained network on the images to forget",
        ),
        "relearn_time": (
            "relearn time",
            "",
            "retrained",
            "steps of training on the images to forget until they are known as well as before, relative to those that "
            "the retrained model takes",
        ),
        "seconds": ("time", "s", "low", "wall-clock time of the whole call"),
        "runtime_ratio": ("time relative to retraining", "%", "low", "that time, divided by the time of retraining"),
    }
    return {key: dict(zip(("title", "unit", "ideal", "note"), row, strict=True)) for key, row in table.items()}


def _attacks(suffix: str, others: str) -> dict[str, tuple[str, str, str, str]]:
    title = "membership attack, {}" + (", forgotten class" if suffix else "")
    notes = {
        "salun": f"share of the images to forget that an SVM on confidences takes for {others}",
        "ssd": f"share of the images to forget that a logistic regression on entropies tells from {others}",
        "starter_kit": f"accuracy of an attack on losses that tells the images to forget from {others}",
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
    """The images of a request by number, the training images first, the test images after them.

    Attributes:
        splits: the images.
        parts: numbers int64 of the images ``"forget"``, ``"retain"``, ``"test"``, and, where a class is to be
            forgotten, ``"test_forgotten"``: its test images, which are then not part of ``"test"``.
    """

    splits: Splits
    parts: dict[str, Tensor]

    @classmethod
    def make(cls, splits: Splits, forget: Tensor, forget_class: int | None) -> Sets:
        """The sets of a request to forget the training images `forget`, which are those of a class or any."""
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
        """Of all images, int64."""
        return torch.cat([self.splits.train_y, self.splits.test_y])

    def numbers(self, part: str) -> Pair:
        """The numbers and labels of a part: data of a :func:`score_table`."""
        return self.parts[part], self.labels[self.parts[part]]

    def images(self, part: str) -> Pair:
        """The images and labels of a part of the training images."""
        return self.splits.train_x[self.parts[part]], self.splits.train_y[self.parts[part]]


def score_table(model: nn.Module, splits: Splits, autocast: torch.dtype | None) -> nn.Embedding:
    """`model` as a table of its scores for every image, by number: metrics read it without running the model again."""
    rows = []
    for data in ((splits.train_x, splits.train_y), (splits.test_x, splits.test_y)):
        rows += each_batch((model,), data, None, autocast, lambda output, y: output.float().cpu())
    return nn.Embedding.from_pretrained(torch.cat(rows))


class StudyEvaluation:
    """Measures the models of one seed.

    Args:
        sets: the images.
        network: builds an untrained model.
        original, retrained: the models that are compared with.
        retraining_seconds: what the second took.
        seed: of the untrained network and of what the measures draw.
        autocast: dtype that the models run in.
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
        """``measures`` of a model that took so many seconds to make, and a ``warning`` where it forgot too much."""
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
            (images[:RELEARN_IMAGES], labels[:RELEARN_IMAGES]),
            max_steps=RELEARN_STEPS,
            seed=self.seed,
            autocast=self.autocast,
        )
        return found.ratio


def _three(measures: Mapping[str, float]) -> dict[str, float]:
    return {part: measures[f"{part}_accuracy"] for part in ("forget", "retain", "test")}


class RequestEvaluation:
    """Measures models on the sets of a request. Every model runs once over the data, all measures share its scores.

    Attributes:
        notes: what could not be measured, and why.
    """

    def __init__(self, method: Method, request: Request, test: tuple[Tensor, Tensor] | None, forget_class: int | None):
        self.method, self.request, self.test, self.forget_class = method, request, test, forget_class
        self.notes: list[str] = []
        if test is None:
            self.notes.append("No test data were given: there is no test accuracy, and no membership attack.")

    def measure(self, model: nn.Module) -> dict[str, float | None]:
        """Accuracies and mean losses by set, and membership attacks."""
        known, scored = _KnownScores(), self._scored(model)
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
        """Gaps to the retrained model, and the measures they are means over; None where there is no such model."""
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
        """Says so where more was forgotten than retraining would have."""
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
        """Scores and labels by set. A test set is that of the classes that stay, and that of the one to forget."""
        scores, y = scores_of(model, self.request.dataset, self._step)
        forget, retain = self.request.forget, self.request.retain
        sets = {"forget": (scores[forget], y[forget]), "retain": (scores[retain], y[retain])}
        if self.test is None:
            return sets
        scores, y = scores_of(model, self.test, self._step)
        sets["all_test"] = scores, y
        goes = y == self.forget_class if self.forget_class is not None else torch.zeros_like(y, dtype=torch.bool)
        for name, chosen in (("test", ~goes), ("test_forgotten", goes)):
            if chosen.any():
                sets[name] = scores[chosen], y[chosen]
        return sets

    def _attack(self, model: nn.Module, sets: dict[str, tuple[Tensor, Tensor]], attack: str) -> float | None:
        unseen = "all_test"
        if attack == "starter_kit" and self.forget_class is not None:
            unseen = "test_forgotten"  # it would tell a class from the others, forgotten or not
        try:
            if unseen not in sets:
                raise ValueError("test: has no samples of the class")
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
    """A model whose scores are known: it takes them for its input."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.empty(0))  # tells the metrics which device to read on

    def forward(self, scores: Tensor) -> Tensor:
        return scores


def scores_of(model: nn.Module, data: Data, batch_size: int) -> tuple[Tensor, Tensor]:
    """Scores (N, classes) and labels (N,), on the CPU."""
    parts = each_batch((model,), data, batch_size, None, lambda scores, y: (scores.cpu(), y.cpu()))
    scores, y = zip(*parts, strict=True)
    return torch.cat(scores), torch.cat(y)


def _gap_measures(measures: Mapping[str, float | None]) -> dict[str, float]:
    """The measures that a gap is the mean over, as far as they are known."""
    forget = measures["forget_accuracy"]
    found = {
        "ua": None if forget is None else 1 - forget,
        "ra": measures["retain_accuracy"],
        "ta": measures.get("test_accuracy"),
        "mia": measures.get("mia_salun"),
    }
    return {name: value for name, value in found.items() if value is not None}
