"""The measures of a study of forgetting: what they are called, how they are read, and which of them differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unlearnx.experiments import robustness

NAMES = {"salun": "SalUn", "ssd": "SSD", "starter_kit": "starter kit"}
ATTACKS = tuple(NAMES)
TIMES = ("seconds", "runtime_ratio")  # measures that differ each time a trial is made


def described(class_name: str | None, attack: str = "salun") -> dict[str, dict[str, str]]:
    """Title, unit, ideal and meaning of every measure.

    Args:
        class_name: name of the class that was forgotten, whose own measures are then among them.
        attack: that the gap is of.
    """
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
            "mean distance from the retrained model in unlearning, retain and test accuracy and "
            f"{NAMES[attack]}'s attack",
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
        **{key: (title, "%", "retrained", note) for key, (title, note) in robustness.described("images").items()},
        "seconds": ("time", "s", "low", "wall-clock time of the whole call"),
        "runtime_ratio": ("time relative to retraining", "%", "low", "that time, divided by the time of retraining"),
        "gradient_ratio": (
            "gradients relative to retraining",
            "%",
            "low",
            "gradients of single samples that were evaluated, divided by those of retraining",
        ),
    }
    return {key: dict(zip(("title", "unit", "ideal", "note"), row, strict=True)) for key, row in table.items()}


def _attacks(suffix: str, others: str) -> dict[str, tuple[str, str, str, str]]:
    title = "membership attack, {}" + (", forgotten class" if suffix else "")
    notes = {
        "salun": f"share of the forget set that an SVM on confidences takes for {others}",
        "ssd": f"share of the forget set that a logistic regression on entropies tells from {others}",
        "starter_kit": f"accuracy of an attack on losses in telling the forget set from {others}",
    }
    return {
        f"mia_{protocol}{suffix}": (title.format(NAMES[protocol]), "%", "retrained", notes[protocol])
        for protocol in ATTACKS
    }


def changed(recorded: dict[str, Any], repeated: dict[str, Any]) -> list[str]:
    """The measures that differ between a recorded trial and its repetition. Times are left out: they always differ."""
    old, new = recorded.get("measures", {}), repeated["measures"]
    return [key for key in old if key not in TIMES and old[key] != new.get(key)]


def gap_measures(measures: Mapping[str, float | None], attack: str = "salun") -> dict[str, float]:
    """The measures that a gap averages, as far as they are known."""
    forget = measures["forget_accuracy"]
    found = {
        "ua": None if forget is None else 1 - forget,
        "ra": measures["retain_accuracy"],
        "ta": measures.get("test_accuracy"),
        "mia": measures.get(f"mia_{attack}"),
    }
    return {name: value for name, value in found.items() if value is not None}
