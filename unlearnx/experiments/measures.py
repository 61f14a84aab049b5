"""Everything that the study of forgetting measures of a model, against the original and the retrained one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from unlearnx import metrics
from unlearnx._checks import model_device
from unlearnx.data import Splits
from unlearnx.experiments.runs import untrained
from unlearnx.metrics.outputs import each_batch

ATTACKS = ("salun", "ssd", "starter_kit")
TIMES = ("seconds", "runtime_ratio")  # what differs each time a cell is made
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
    """Measures of a cell that another making of it does not confirm. Times are left out: they always differ."""
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
        """The numbers and labels of a part: data of a :func:`recall`."""
        return self.parts[part], self.labels[self.parts[part]]

    def images(self, part: str) -> Pair:
        """The images and labels of a part of the training images."""
        return self.splits.train_x[self.parts[part]], self.splits.train_y[self.parts[part]]


def recall(model: nn.Module, splits: Splits, autocast: torch.dtype | None) -> nn.Embedding:
    """`model` as a table of its scores for every image, by number: metrics read it without running the model again."""
    rows = []
    for data in ((splits.train_x, splits.train_y), (splits.test_x, splits.test_y)):
        rows += each_batch((model,), data, None, autocast, lambda output, y: output.float().cpu())
    return nn.Embedding.from_pretrained(torch.cat(rows))


class Bench:
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
        self._random, self._reference = self._recall(random), self._recall(retrained)
        self._accuracies, self._attacks = self._accuracy(self._reference), self._attack(self._reference)

    def measure(self, model: nn.Module, seconds: float) -> dict[str, Any]:
        """``measures`` of a model that took so many seconds to make, and a ``warning`` where it forgot too much."""
        recalled = self._recall(model)
        accuracies, attacks = self._accuracy(recalled), self._attack(recalled)
        forget = self.sets.numbers("forget")
        measures = {f"{part}_accuracy": share for part, share in accuracies.items()}
        measures["ua"] = 1 - accuracies["forget"]
        measures["gap"] = metrics.gap(_judged(accuracies, attacks), _judged(self._accuracies, self._attacks))
        measures["tow"] = metrics.tug_of_war(_three(accuracies), _three(self._accuracies))
        measures |= attacks
        measures["activation_distance"] = metrics.activation_distance(recalled, self._reference, forget)
        measures["js"] = metrics.js_divergence(recalled, self._reference, forget)
        measures["zrf"] = metrics.zrf(recalled, self._random, forget)
        measures["relearn_time"] = self._relearn_time(model)
        measures["seconds"] = seconds
        measures["runtime_ratio"] = metrics.runtime_ratio(seconds, self.retraining_seconds)
        return {"measures": measures, "warning": metrics.over_forgetting(recalled, self._reference, forget)}

    def _recall(self, model: nn.Module) -> nn.Embedding:
        return recall(model, self.sets.splits, self.autocast)

    def _accuracy(self, recalled: nn.Module) -> dict[str, float]:
        return {part: metrics.accuracy(recalled, self.sets.numbers(part)) for part in self.sets.parts}

    def _attack(self, recalled: nn.Module) -> dict[str, float]:
        sets = {part: self.sets.numbers(part) for part in self.sets.parts}
        return {
            f"mia_{protocol}{suffix}": metrics.mia(
                recalled, forget=sets["forget"], retain=sets["retain"], test=sets[others], protocol=protocol
            )
            for others, suffix in (("test", ""), ("test_forgotten", "_class"))
            if others in sets
            for protocol in ATTACKS
        }

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


def _judged(accuracies: dict[str, float], attacks: dict[str, float]) -> dict[str, float]:
    """What the average gap is taken over."""
    return {
        "ua": 1 - accuracies["forget"],
        "ra": accuracies["retain"],
        "ta": accuracies["test"],
        "mia": attacks["mia_salun"],
    }


def _three(accuracies: dict[str, float]) -> dict[str, float]:
    return {part: accuracies[part] for part in ("forget", "retain", "test")}
