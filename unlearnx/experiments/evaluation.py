"""Measures of models on the sets of a request to forget."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from unlearnx import metrics
from unlearnx._batches import Nest, scores, take
from unlearnx._data import Data, left_of
from unlearnx._losses import Loss
from unlearnx.experiments.robustness import PROBE, Robustness, probed
from unlearnx.metrics.outputs import each_batch
from unlearnx.metrics.robustness import PROBED

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Sets:
    """The sets of a request, as indices of samples: training data come first, test data after them.

    Attributes:
        train: samples and their labels.
        test: the same, or None where there are no test data.
        parts: indices int64 by set: ``"forget"``, ``"retain"``, with test data ``"test"``, and where a class is to be
            forgotten ``"test_forgotten"``, its test samples, which are then not part of ``"test"``.
    """

    train: tuple[Nest, Tensor]
    test: tuple[Nest, Tensor] | None
    parts: dict[str, Tensor]

    @classmethod
    def make(
        cls,
        train: tuple[Nest, Tensor],
        test: tuple[Nest, Tensor] | None,
        forget: Tensor,
        forget_class: int | None,
        classes: Tensor | None = None,
    ) -> Sets:
        """The sets of a request to forget the training samples `forget`: all of `forget_class`, unless it is None.

        Args:
            train, test: samples and labels.
            forget: indices.
            forget_class: number of the class.
            classes: those of the test samples, of which `forget_class` is one, int64; None for their labels.
        """
        n = len(train[1])
        parts = {"forget": forget, "retain": left_of(n, forget)}
        if test is not None:
            parts["test"] = n + torch.arange(len(test[1]))
            if forget_class is not None:
                of_class = (test[1] if classes is None else classes) == forget_class
                parts |= {"test": parts["test"][~of_class], "test_forgotten": parts["test"][of_class]}
        return cls(train, test, parts)

    @cached_property
    def labels(self) -> Tensor:
        """Labels of all samples, int64."""
        return torch.cat([y for _, y in self.data])

    @property
    def data(self) -> list[tuple[Nest, Tensor]]:
        """All samples, in order of their indices."""
        return [self.train] if self.test is None else [self.train, self.test]

    def numbers(self, part: str) -> Pair:
        """Indices and labels of a set: data for :meth:`Evaluation.scores`."""
        return self._numbered(self.parts[part])

    @property
    def all_test(self) -> Pair:
        """Indices and labels of all test data."""
        return self._numbered(torch.arange(len(self.train[1]), len(self.labels)))

    def samples(self, part: str) -> tuple[Nest, Tensor]:
        """Samples and labels of a set of training data."""
        x, y = self.train
        return take(x, self.parts[part]), y[self.parts[part]]

    def _numbered(self, indices: Tensor) -> Pair:
        return indices, self.labels[indices]


class Evaluation:
    """Measures models on the sets of a request.

    Each model runs over the data once, and all measures share its scores: a model that was measured must not change.

    Args:
        sets: the samples.
        batch_size: samples in one forward pass; None for a default.
        autocast: dtype for the layers that mixed precision speeds up; None keeps the models' own dtype.
        returns_tensor: whether models return their scores by themselves, and not as the ``logits`` of an object, which
            a loss function may ask for.
    """

    def __init__(
        self,
        sets: Sets,
        *,
        batch_size: int | None = None,
        autocast: torch.dtype | None = None,
        returns_tensor: bool = True,
    ):
        self.sets, self.autocast = sets, autocast
        self._batch_size, self._returns_tensor = batch_size, returns_tensor
        self._known: WeakKeyDictionary[nn.Module, _KnownScores] = WeakKeyDictionary()

    @property
    def sizes(self) -> dict[str, int]:
        """Samples by set, without empty ones."""
        return {part: len(indices) for part, indices in self.sets.parts.items() if len(indices)}

    def scores(self, model: nn.Module) -> _KnownScores:
        """A model that looks up the scores of `model` by the index of a sample."""
        if model not in self._known:
            rows = [row for data in self.sets.data for row in self._rows(model, data)]
            self._known[model] = _KnownScores(torch.cat(rows), self._returns_tensor)
        return self._known[model]

    def accuracies(self, model: nn.Module) -> dict[str, float]:
        """Accuracy on each set."""
        return {
            f"{part}_accuracy": metrics.accuracy(self.scores(model), self.sets.numbers(part)) for part in self.sizes
        }

    def losses(self, model: nn.Module, loss_fn: Loss) -> dict[str, float]:
        """Mean loss on each set."""
        known = self.scores(model)
        return {f"{part}_loss": metrics.mean_loss(known, loss_fn, self.sets.numbers(part)) for part in self.sizes}

    def attack(self, model: nn.Module, protocol: str, unseen: Pair, *, seed: int = 0) -> float:
        """A membership attack on the forget set, of a model that has not seen the samples `unseen`."""
        forget, retain = (self.sets.numbers(part) for part in ("forget", "retain"))
        known = self.scores(model)
        return metrics.mia(known, forget=forget, retain=retain, test=unseen, protocol=protocol, seed=seed)

    def distance(self, model: nn.Module, other: nn.Module) -> dict[str, float]:
        """Mean distances of two models' predictions on the forget set."""
        known, forget = (self.scores(model), self.scores(other)), self.sets.numbers("forget")
        return {
            "activation_distance": metrics.activation_distance(*known, forget),
            "js": metrics.js_divergence(*known, forget),
        }

    def over_forgetting(self, model: nn.Module, retrained: nn.Module) -> str | None:
        """A warning where a model forgot more than retraining did; else None."""
        return metrics.over_forgetting(self.scores(model), self.scores(retrained), self.sets.numbers("forget"))

    def come_back(self, model: nn.Module, loss_fn: Loss, *, seed: int) -> dict[str, float | None]:
        """How much of the forget set comes back in rounded weights, by learning some of it again, and to a probe.

        The probe is None where the model has no hidden states, or the forget set a single sample.
        """
        found = self.robustness(loss_fn, seed).measure(model)
        forget, retain = self.sets.parts["forget"], self.sets.parts["retain"]
        generator = torch.Generator().manual_seed(seed)
        forget = forget[torch.randperm(len(forget), generator=generator)]
        stays = retain[torch.randperm(len(retain), generator=generator)[:PROBED]]
        fitted, read = forget[::2], forget[1::2]
        found[PROBE] = None
        if len(read):
            x, y = self.sets.train
            train, test = ((take(x, i), y[i]) for i in (torch.cat([fitted[:PROBED], stays]), read))
            with suppress(ValueError):
                found[PROBE] = probed(
                    model, train, test, batch_size=self._batch_size, autocast=self.autocast, seed=seed
                )
        return found

    def robustness(self, loss_fn: Loss, seed: int) -> Robustness:
        """What measures rounded weights and learning again on the forget set."""

        def known(model: nn.Module, data: Data) -> float:
            return metrics.accuracy(model, data, batch_size=self._batch_size, autocast=self.autocast)

        return Robustness(self.sets.samples("forget"), known, loss_fn=loss_fn, autocast=self.autocast, seed=seed)

    def _rows(self, model: nn.Module, data: Data) -> list[Tensor]:
        def row(output: object, y: Tensor) -> Tensor:
            found = scores(output).cpu()
            return found if self.autocast is None else found.float()

        return each_batch((model,), data, self._batch_size, self.autocast, row)


class _KnownScores(nn.Module):
    """A model that looks up scores by the indices of samples, so that metrics can be computed from known scores.

    It returns them as the models do that they are of: by themselves, or as the ``logits`` of an object.
    """

    def __init__(self, rows: Tensor, returns_tensor: bool):
        super().__init__()
        self.rows = nn.Parameter(rows, requires_grad=False)  # metrics take the device from a parameter
        self._returns_tensor = returns_tensor

    def forward(self, indices: Tensor) -> Tensor | _Logits:
        found = self.rows[indices]
        return found if self._returns_tensor else _Logits(logits=found)


class _Logits(dict[str, Tensor]):
    """Scores as losses of one's own read them of models of transformers: by attribute or by key."""

    @property
    def logits(self) -> Tensor:
        return self["logits"]
