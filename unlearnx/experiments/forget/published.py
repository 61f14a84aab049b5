"""Results that others have published, for the report to show beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

KEYS = ("forget_accuracy", "retain_accuracy", "test_accuracy", "mia_salun", "gap")

Row = Sequence[float | tuple[float, float] | None]  # per cent for each of KEYS; a mean may have its standard deviation

_SALUN_TENTH: dict[str, Row] = {
    "retrained": (94.76, 100, 94.26, 12.88, 0),
    "salun": (97.15, 99.62, 93.93, 14.39, 1.15),
    "l1-sparse": (95.81, 97.74, 91.59, 9.84, 2.26),
    "boundary-shrink": (98.22, 98.29, 92.69, 8.96, 2.67),
    "fine-tune": (99.37, 99.88, 94.06, 2.70, 3.78),
    "influence": (98.93, 99.20, 93.20, 2.67, 4.06),
    "gradient-ascent": (99.31, 99.50, 94.01, 1.70, 4.12),
    "random-labels": (92.39, 99.67, 92.83, 37.36, 7.15),
}
_RERUN_HALF: dict[str, Row] = {
    "retrained": (81.55, 100, 81.03, None, 0),
    "salun": (81.49, 99.26, 75.19, None, 2.22),
    "scrub": (99.73, 100, 86.95, None, 8.03),
    "ssd": (None, (72, 42), None, None, None),
}
_RERUN_CLASS: dict[str, Row] = {
    "retrained": (0, 94.81, None, 100, 0),
    "scrub": (0, 94.79, None, 0, None),
    "unsir": (10.89, 92.20, None, 61.5, None),
    "ssd": (4.37, (85.76, 25.76), None, 87.86, None),
}
_VGG_CLASS = {
    "original": {"test_accuracy": 0.880},
    "fine-tune": {"test_accuracy": 0.841},
    "fine-tune-anchored": {"test_accuracy": 0.858},
    "their final model": {"test_accuracy": 0.880},
}
_VGG_RANDOM = {
    "fisher-masking": {"activation_distance": 0.11, "js": 0.07},
    "ssd": {"activation_distance": 0.19, "js": 0.11},
}


def published(kind: str, data: str, share: float | None) -> list[dict[str, Any]]:
    """The tables of a study: of each its ``source``, how it was ``made`` otherwise, and ``rows``: measures by model.

    Where standard deviations are published beside these, ``deviations`` has them in the same form.
    """
    if data == "cifar":
        rows, source = (
            (_VGG_CLASS, "a class") if kind == "class" else (_VGG_RANDOM, "a random share, each method alone")
        )
        made = "another network, trained on the images as published"
        return [{"source": f"the first study of forgetting {source}", "made": made, "rows": rows}]
    if data != "cifar10":
        return []
    if kind == "class":
        return [_table(_RERUN_CLASS, "class-wise CIFAR-10, a rerun of published methods", "the mean of ten classes")]
    if share == 0.5:
        return [
            _table(_RERUN_HALF, "a random half, a rerun of published methods", "a ResNet-18 on the published images")
        ]
    if share == 0.1:
        made = "a ResNet-18 trained for 182 epochs on the first published images; 4,500 of 45,000 are forgotten"
        return [_table(_SALUN_TENTH, "Fan et al., SalUn, ICLR 2024", made)]
    return []


def _table(rows: Mapping[str, Row], source: str, made: str) -> dict[str, Any]:
    means: dict[str, dict[str, float]] = {}
    deviations: dict[str, dict[str, float]] = {}
    for name, row in rows.items():
        for key, value in zip(KEYS, row, strict=True):
            mean, deviation = value if isinstance(value, tuple) else (value, None)
            for found, number in ((means, mean), (deviations, deviation)):
                if number is not None:
                    found.setdefault(name, {})[key] = number / 100
    return {"source": source, "made": made, "rows": means, "deviations": deviations}
