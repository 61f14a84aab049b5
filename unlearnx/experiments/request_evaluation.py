"""The measures of a user's own model, with whatever data were given."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from torch import Tensor, nn

from unlearnx import metrics
from unlearnx._batches import Nest
from unlearnx._data import materialize
from unlearnx.experiments.evaluation import Evaluation, Sets
from unlearnx.experiments.measures import ATTACKS, gap_measures
from unlearnx.experiments.robustness import PROBE
from unlearnx.methods import Method, Request
from unlearnx.methods.evidence import too_much
from unlearnx.metrics.robustness import PROBED


class RequestEvaluation(Evaluation):
    """Measures models on the sets of a request.

    Attributes:
        notes: sentences on what could not be measured, and why.
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
        sets = Sets.make(materialize(request.dataset), test, request.forget, forget_class)
        super().__init__(sets, batch_size=method.batch_size, returns_tensor=returns_tensor)
        self.method, self.forget_class = method, forget_class
        self.notes: list[str] = []
        if test is None:
            self.notes.append("No test data were given: there is no test accuracy, and no membership attack.")

    def measure(self, model: nn.Module) -> dict[str, float | None]:
        """Accuracies and mean losses by set, membership attacks, and what comes back of the forget set."""
        measures: dict[str, float | None] = {}
        measures |= self.accuracies(model)
        measures |= self.losses(model, self.method.loss_fn)
        if self.sets.test is not None:
            measures |= {f"mia_{protocol}": self._attack(model, protocol) for protocol in ATTACKS}
        return measures | self.come_back(model, self.method.loss_fn, seed=self.method.seed)

    @property
    def read(self) -> dict[str, int]:
        """Samples that measures of what comes back are read on."""
        probed = min(PROBED, len(self.sets.parts["forget"]) // 2)
        return {**self.robustness(self.method.loss_fn, self.method.seed).sizes, PROBE: probed}

    def distances(self, models: Mapping[str, nn.Module]) -> dict[str, dict[str, float]]:
        """Distances of predictions on the forget set, for each pair of models."""
        return {f"{a}, {b}": self.distance(models[a], models[b]) for a, b in combinations(models, 2)}

    def gaps(self, measures: Mapping[str, Mapping[str, float | None]]) -> dict[str, Any] | None:
        """Gaps to the retrained model, and the measures that they average; None without a retrained model."""
        if "retrained" not in measures:
            return None
        rows = {name: gap_measures(row) for name, row in measures.items()}
        common = [key for key in rows["retrained"] if all(key in row for row in rows.values())]
        found = {
            name: metrics.gap({key: row[key] for key in common}, {key: rows["retrained"][key] for key in common})
            for name, row in rows.items()
            if name != "retrained"
        }
        return {**found, "over": common}

    def warning(self, models: Mapping[str, nn.Module], evidence: Mapping[str, Any]) -> str | None:
        """A warning where the model forgot more than retraining would have, or than is expected of it; else None."""
        if "after" not in models:
            return None
        if "retrained" not in models:
            return too_much(evidence)
        return self.over_forgetting(models["after"], models["retrained"])

    def _attack(self, model: nn.Module, protocol: str) -> float | None:
        unseen = self.sets.all_test
        try:
            if protocol == "starter_kit" and self.forget_class is not None:
                if "test_forgotten" not in self.sizes:
                    raise ValueError("test: has no samples of the class to forget")
                unseen = self.sets.numbers("test_forgotten")  # of other classes, it would only tell the classes apart
            return self.attack(model, protocol, unseen, seed=self.method.seed)
        except ValueError as error:  # too few samples, as a rule
            note = f"The membership attack {protocol} could not be run: {error}."
            if note not in self.notes:
                self.notes.append(note)
            return None
