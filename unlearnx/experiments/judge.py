"""What an unlearned model is worth beside the one it came from, and beside a retrained one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unlearnx._data import Data
from unlearnx.methods import Method, Request
from unlearnx.metrics import accuracy, activation_distance, gap, js_divergence, mean_loss, mia, over_forgetting
from unlearnx.metrics.outputs import each_batch

ATTACKS = ("salun", "ssd", "starter_kit")


class Judge:
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
                measures[f"{name}_accuracy"] = accuracy(known, pair)
                measures[f"{name}_loss"] = mean_loss(known, self.method.loss_fn, pair)
        if self.test is not None:
            for attack in ATTACKS:
                measures[f"mia_{attack}"] = self._attack(known, scored, attack)
        return measures

    def distances(self, models: Mapping[str, nn.Module]) -> dict[str, dict[str, float]]:
        """Distances of predictions on the forget set, for each pair of models."""
        names = list(models)
        return {
            f"{a}, {b}": {
                "activation_distance": activation_distance(models[a], models[b], self._forget, batch_size=self._step),
                "js": js_divergence(models[a], models[b], self._forget, batch_size=self._step),
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
            name: gap({key: row[key] for key in common}, {key: rows["retrained"][key] for key in common})
            for name, row in rows.items()
            if name != "retrained"
        }
        return {**found, "over": common}

    def warning(self, models: Mapping[str, nn.Module]) -> str | None:
        """Says so where more was forgotten than retraining would have."""
        if "after" not in models or "retrained" not in models:
            return None
        return over_forgetting(models["after"], models["retrained"], self._forget, batch_size=self._step)

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
            return mia(
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
