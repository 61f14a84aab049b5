"""What models make of samples: hits, probabilities of the labels, losses, and features at several depths."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unlearnx._batches import Nest, moved, scores
from unlearnx._calls import run
from unlearnx._checks import check_at_least_one, model_device
from unlearnx._data import Data
from unlearnx._memory_order import ImageOrder
from unlearnx._modes import evaluating
from unlearnx._sources import Samples
from unlearnx.metrics.depths import Depths

HIT, PROBABILITY, LOSS = range(3)  # rows of what is said of labels
TRIED = 2, 3  # samples in the calls that tell at which depths there are features of each
PASS = 64  # samples in one forward pass where the caller does not say; of images more of them are no faster


@dataclass(frozen=True)
class Reading:
    """What a model makes of samples.

    Attributes:
        y: labels (N,), int64.
        of_labels: float64 (3, N): whether the label is predicted, its probability, and its loss in nats.
        of_others: the same of another label for each sample, which takes turns.
        classes: number of classes.
        features: features (N, D) by depth.
    """

    y: Tensor
    of_labels: Tensor
    of_others: Tensor
    classes: int
    features: dict[str, Tensor]

    def where(self, chosen: Tensor) -> Reading:
        """Of the samples that are chosen, (N,) bool."""
        features = {name: t[chosen] for name, t in self.features.items()}
        return Reading(self.y[chosen], self.of_labels[:, chosen], self.of_others[:, chosen], self.classes, features)


@dataclass
class Reader:
    """Reads models on random samples; the features of one model are always at the same depths."""

    batch_size: int | None
    autocast: torch.dtype | None
    seed: int
    depths: Depths = field(default_factory=Depths)

    def __post_init__(self) -> None:
        check_at_least_one(batch_size=self.batch_size)

    def read(self, model: nn.Module, data: Data, most: int, *, features: bool = False) -> Reading | None:
        """The outputs for at most so many samples, on the CPU; None where they are no scores of the labels."""
        samples = Samples(data)
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(samples), generator=generator)[:most].sort().values
        device = model_device(model)
        found_scores: list[Tensor] = []
        labels: list[Tensor] = []
        taken: list[dict[str, Tensor]] = []
        with evaluating(model) as lent, ExitStack() as watch:
            order = ImageOrder(lent)
            order.taken(samples.read(chosen[:2])[0])  # which runs the model, and is not to be watched

            def output_of(x: Nest) -> Any:
                with torch.autocast(device.type, self.autocast, enabled=self.autocast is not None):
                    return run(lent, order(moved(x, device)))

            if features:
                few, more = ((samples.read(chosen[torch.arange(n) % len(chosen)])[0], n) for n in TRIED)
                self.depths.choose(lent, lambda x: scores(output_of(x)), few, more)
                watch.enter_context(self.depths.watching(lent))
            for x, y in samples.batches(chosen.split(self.batch_size or PASS)):
                output, y = output_of(x), moved(y, device)
                rows = class_scores(output, y)
                if rows is None:
                    return None
                found_scores.append(rows.double().cpu())
                labels.append(y.reshape(len(y)).long().cpu())
                if features:
                    taken.append({name: t.cpu() for name, t in self.depths.take(x, len(y)).items()})
        y = torch.cat(labels)
        joined = {name: torch.cat([part[name] for part in taken]) for name in (taken[-1] if taken else ())}
        values = torch.cat(found_scores)
        return Reading(y, of_labels(values, y), of_labels(values, others(y, values.shape[1])), values.shape[1], joined)


def of_labels(values: Tensor, y: Tensor) -> Tensor:
    """What scores `values` (N, classes) say of the labels (N,): see :class:`Reading`."""
    logs = values.double().log_softmax(1).gather(1, y[:, None]).squeeze(1)
    return torch.stack([(values.argmax(1) == y).double(), logs.exp(), -logs])


def others(y: Tensor, classes: int) -> Tensor:
    """For each of the labels (N,) one that it is not, all others in turn."""
    return (y + 1 + torch.arange(len(y), device=y.device) % (classes - 1)) % classes


def class_scores(output: Any, y: Nest) -> Tensor | None:
    """Scores (N, classes); a logit of a yes is the score of the second of two classes. None of other outputs."""
    if not isinstance(y, Tensor) or y.numel() != len(y):
        return None
    output = scores(output)
    labels = y.reshape(len(y))
    if output.dim() == 2 and output.shape[1] > 1 and not y.is_floating_point():
        return output if bool(((labels >= 0) & (labels < output.shape[1])).all()) else None
    if output.numel() == len(y) and bool(((labels == 0) | (labels == 1)).all()):
        z = output.reshape(len(y), 1)
        return torch.cat([torch.zeros_like(z), z], 1)
    return None
