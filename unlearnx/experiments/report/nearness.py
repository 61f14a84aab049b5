"""Whether the method with the smallest average gap is near to retraining in all that is measured."""

from __future__ import annotations

import math
from typing import Any

from unlearnx.experiments.robustness import described

COME_BACK = described("images")
FAR = 0.05  # of accuracies and attacks, which are shares
FAR_RATIO = 1.5  # of relearn times, either way


def far_from_retraining(result: dict[str, Any], name: str) -> list[str]:
    """The measures in which a method is far from the retrained model, each with both values.

    The average gap is of three accuracies and one attack: a method may be close in these, and another attack or further
    training may still give the removal away.
    """
    own, reference = (result["summary"][model] for model in (name, "retrained"))
    found = []
    for key, measure in result["measures"].items():
        if measure["ideal"] != "retrained" or key == "ua":  # one minus the forget accuracy, which is there as well
            continue
        value, wanted = ((row.get(key) or {}).get("mean") for row in (own, reference))
        if value is not None and wanted is not None and _differ(key, value, wanted):
            found.append(
                f"{measure['title']} {_shown(value, measure['unit'])}, retrained {_shown(wanted, measure['unit'])}"
            )
    return found


def _differ(key: str, value: float, wanted: float) -> bool:
    if math.isnan(value) or math.isnan(wanted):
        return False
    if key in COME_BACK:  # it is no fault where less comes back
        return value - wanted > FAR
    if key == "relearn_time":
        low, high = sorted((value, wanted))
        return high > FAR_RATIO * low
    return abs(value - wanted) > FAR


def _shown(value: float, unit: str) -> str:
    return f"{100 * value:.1f} %" if unit == "%" else f"{value:.2f}"
