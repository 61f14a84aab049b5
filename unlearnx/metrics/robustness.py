"""Whether what was forgotten comes back: by rounding the weights, by a probe, by a few examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from unlearnx._arguments import checked
from unlearnx._checks import check_at_least_one, check_integer, known_as
from unlearnx._copies import independent, merged
from unlearnx._data import Data, as_dataset, picked, size
from unlearnx._losses import Loss
from unlearnx._models import check_gradients_possible
from unlearnx.metrics.classification import mean_loss
from unlearnx.metrics.readings import Reader
from unlearnx.metrics.ridge import RidgeClassifier
from unlearnx.metrics.texts import are_texts

MOST_BITS = 16
PROBED = 2000  # most samples that a probe is fitted on, and that it is read on


@checked
def rounded_weights(model: nn.Module, bits: int = 4) -> nn.Module:
    """A copy of the model with weights as quantisation to so few bits leaves them: forgotten facts may come back.

    Unlearning often moves weights by less than a rounding step, so that the rounded model is that from before. Compare
    what the copy does on the forget set with the rounded copy of a retrained model.

    Each row of a weight, one for each of its first dimension, is rounded to the nearest of ``2**bits - 1`` levels that
    lie symmetrically about zero and reach to its largest absolute value (round to nearest, absmax by channel).
    Parameters of one dimension, as biases and norms have, stay as they are. An adapter of peft is merged into the
    weights first, as it is where a model is quantised; the copy is then without one.

    Args:
        model: it is left as it was.
        bits: 2 to 16.

    Raises:
        ValueError: `bits` is out of range.

    Source: Zhang et al., "Catastrophic Failure of LLM Unlearning via Quantization", ICLR 2025.

    Example:
        >>> model = nn.Linear(8, 3)
        >>> [len(rounded_weights(model, 2).weight[i].unique()) <= 3 for i in range(3)]
        [True, True, True]
    """
    check_integer(bits=bits)
    if not 2 <= bits <= MOST_BITS:
        raise ValueError(f"bits is {bits}, expected a number from 2 to {MOST_BITS}")
    twin, most = merged(model), 2 ** (bits - 1) - 1
    with torch.no_grad():
        for p in twin.parameters():
            if p.dim() > 1 and p.is_floating_point():
                rows = p.detach().flatten(1).double()
                step = rows.abs().amax(1, keepdim=True) / most
                levels = torch.where(step > 0, rows / step.clamp(min=torch.finfo(torch.float64).tiny), 0).round()
                p.copy_((levels * step).view_as(p))
    return twin


@checked
def linear_probe(
    model: nn.Module,
    train: Data,
    test: Data,
    *,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """What a linear classifier still finds in the model's hidden states: its accuracy on `test` at several depths.

    Where only the last layer has forgotten a class, a probe on the states before it finds the class as well as ever.
    A retrained model's states tell classes apart that it never saw, too: compare with its own.

    Args:
        model: maps x to class scores (N, classes), or to logits of yes (N,) or (N, 1).
        train: samples with the labels that the probes are to find, such as the forget set and part of the retain set;
            at most 2,000, drawn at random, are read.
        test: other samples of these labels, such as test samples of a forgotten class.
        batch_size: samples in one forward pass.
        autocast: dtype for the layers that mixed precision speeds up; None keeps the model's own dtype.
        seed: of the samples that are read.

    Returns:
        Accuracies in [0, 1] by the names of modules, in the model's order; ``"input"`` for inputs of real numbers.

    Raises:
        ValueError: the samples are texts, outputs are no class scores for the labels, or no module gives features.

    Source: Alain and Bengio, "Understanding intermediate layers using linear classifier probes", 2016; by ridge
    regression on at most 512 features of a sample at each depth.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> list(linear_probe(model, (x, y), (x, y)))
        ['input', '0', '1']
    """
    for name, data in (("train", train), ("test", test)):
        if are_texts(data):
            raise ValueError(f"{name}: holds texts, whose tokens are their own labels; expected one label a sample")
    reader = Reader(batch_size, autocast, seed)
    with known_as(data="train"):
        fitted = reader.read(model, train, PROBED, features=True)
    with known_as(data="test"):
        read = reader.read(model, test, PROBED, features=True)
    if fitted is None or read is None:
        raise ValueError("model: gives no class score for each label of a sample, expected scores (N, classes)")
    if not fitted.features:
        raise ValueError("model: has no module between its input and its output, expected hidden states to probe")
    found = {}
    for name, features in fitted.features.items():
        probe = RidgeClassifier(features, fitted.y, fitted.classes)
        found[name] = float((probe(read.features[name]).argmax(1) == read.y).double().mean())
    return found


@checked
def relearn_curve(
    model: nn.Module,
    forget: Data,
    counts: Sequence[int] = (1, 10, 100),
    *,
    loss_fn: Loss = F.cross_entropy,
    steps: int = 20,
    lr: float = 1e-3,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
    seed: int = 0,
) -> dict[int, float]:
    """Mean loss on the rest of the forget set after training on a few samples of it: does one bring back the others?

    A copy of the model is trained on so many samples, all of them in each step, with its modules in eval mode. A model
    that has only been kept from saying what it knows falls faster than a retrained one: compare with its curve.

    Args:
        model: it is left as it was.
        forget: samples (x, y); at least one more than the largest of `counts`.
        counts: how many samples to train on; 0 for the loss before, which is always read on the same samples as the
            others: those that the largest count leaves.
        loss_fn: ``loss_fn(output, y)``: losses per sample, their mean or their sum.
        steps: of AdamW.
        lr: its peak learning rate.
        batch_size: samples in one forward pass of the measurement.
        autocast: dtype for the layers that mixed precision speeds up; None keeps the model's own dtype.
        seed: of the samples that are trained on: those of a smaller count are among those of a larger one.

    Returns:
        For each count the mean loss, in nats for cross-entropy.

    Raises:
        ValueError: a count is negative or leaves nothing to measure, or a number is out of range.

    Source: Lynch et al., "Eight Methods to Evaluate Robust Unlearning in LLMs", 2024; Hu et al., "Unlearning or
    Obfuscating? Jogging the Memory of Unlearned LLMs via Benign Relearning", ICLR 2025.

    Example:
        >>> forget = torch.randn(40, 8), torch.zeros(40, dtype=torch.int64)
        >>> losses = relearn_curve(nn.Linear(8, 3), forget, [0, 10], lr=0.1)
        >>> losses[10] < losses[0]  # they have their label in common
        True
    """
    check_gradients_possible()
    check_at_least_one(steps=steps)
    n, asked = size(forget), list(counts)
    if not asked or any(isinstance(k, bool) or not isinstance(k, int) or k < 0 for k in asked):
        raise ValueError(f"counts is {counts!r}, expected numbers of samples, 0 or more")
    if max(asked) >= n:
        raise ValueError(f"counts: holds {max(asked)}, expected fewer than the {n} samples of forget")
    few, rest = few_and_rest(forget, asked, seed)
    found = {}
    for k in asked:
        twin = independent(model).eval()
        if k:
            relearn_(twin, few[k], loss_fn=loss_fn, steps=steps, lr=lr, autocast=autocast, seed=seed)
        found[k] = mean_loss(twin, loss_fn, rest, batch_size=batch_size, autocast=autocast)
    return found


def few_and_rest(forget: Data, counts: Sequence[int], seed: int) -> tuple[dict[int, Dataset[Any]], Dataset[Any]]:
    """So many samples, drawn at random, for each count above zero, the fewer among the more; and what all leave."""
    dataset = as_dataset(forget)
    order = torch.randperm(size(forget), generator=torch.Generator().manual_seed(seed))
    few = {k: picked(dataset, order[:k].sort().values) for k in counts if k}
    return few, picked(dataset, order[max(counts) :].sort().values)


def relearn_(
    model: nn.Module,
    few: Data,
    *,
    loss_fn: Loss,
    steps: int,
    lr: float,
    autocast: torch.dtype | None,
    seed: int,
) -> None:
    """Train a model in place on a few samples, all of them in each step; its modules keep their modes."""
    from unlearnx.models.training import Training

    together = size(few)
    Training(steps, lr, together, weight_decay=0.0, loss_fn=loss_fn, autocast=autocast, seed=seed).run(model, few)
