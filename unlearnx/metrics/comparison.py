"""Measures of an unlearned model compared with those of a retrained model."""

from __future__ import annotations

import math
from collections.abc import Mapping

from unlearnx._arguments import checked

SETS = ("forget", "retain", "test")


@checked
def gap(unlearned: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    """Mean absolute difference between the measures of an unlearned and a retrained model, in their unit; 0 is ideal.

    Args:
        unlearned: measures of the unlearned model by name, usually ``"ua"`` (1 - accuracy on the forget set),
            ``"ra"``, ``"ta"`` (accuracies on retain and test set) and ``"mia"``.
        retrained: the same measures of the retrained model.

    Raises:
        ValueError: the names differ, there are none, or a measure is not finite.

    Source: Fan et al., "SalUn", ICLR 2024 ("average gap").

    Example:
        >>> gap({"ua": 0.96, "ra": 0.99, "ta": 0.90}, {"ua": 1.0, "ra": 1.0, "ta": 0.91})
        0.02...
    """
    if unlearned.keys() != retrained.keys() or not unlearned:
        raise ValueError(
            f"retrained: has the measures {sorted(retrained)}, expected the same as unlearned, {sorted(unlearned)}, "
            "and at least one"
        )
    for which, measures in (("unlearned", unlearned), ("retrained", retrained)):
        for name, value in measures.items():
            if not math.isfinite(value):
                raise ValueError(f"{which}[{name!r}] is {value}, expected a finite number")
    return sum(abs(unlearned[name] - retrained[name]) for name in unlearned) / len(unlearned)


@checked
def tug_of_war(unlearned: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    """Tug of war (ToW): the product over three sets of ``1 - |accuracy_unlearned - accuracy_retrained|``; 1 is ideal.

    Args:
        unlearned: accuracies of the unlearned model in [0, 1], by ``"forget"``, ``"retain"`` and ``"test"``.
        retrained: those of the retrained model.

    Raises:
        ValueError: an accuracy is missing, unknown or outside of [0, 1].

    Source: Zhao et al., "What makes unlearning hard and what to do about it", NeurIPS 2024, equation 2.

    Example:
        >>> retrained = {"forget": 0.0, "retain": 1.0, "test": 0.9}
        >>> tug_of_war({"forget": 0.5, "retain": 1.0, "test": 0.9}, retrained)
        0.5
    """
    for which, accuracies in (("unlearned", unlearned), ("retrained", retrained)):
        if set(accuracies) != set(SETS):
            raise ValueError(f"{which}: has accuracies for {sorted(accuracies)}, expected {sorted(SETS)}")
        for name, value in accuracies.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{which}[{name!r}] is {value}, expected an accuracy in [0, 1]")
    return math.prod(1 - abs(unlearned[name] - retrained[name]) for name in SETS)


@checked
def runtime_ratio(seconds: float, retraining_seconds: float) -> float:
    """Time of unlearning as a share of the time of retraining, ``seconds / retraining_seconds``: below 1 it was
    cheaper.

    Raises:
        ValueError: a time is negative or not finite, or that of retraining is 0.

    Example:
        >>> runtime_ratio(0.5, retraining_seconds=10.0)
        0.05
    """
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"seconds is {seconds}, expected a finite number >= 0")
    if not (math.isfinite(retraining_seconds) and retraining_seconds > 0):
        raise ValueError(f"retraining_seconds is {retraining_seconds}, expected a finite number > 0")
    return seconds / retraining_seconds
