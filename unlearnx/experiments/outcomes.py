"""What results say about a method's outcome."""

from __future__ import annotations

from typing import Any

from unlearnx.methods import Outcome


def describe_outcome(outcome: Outcome) -> dict[str, Any]:
    """The part of a result that every study has: all fields of the outcome but the model."""
    return {name: value for name, value in vars(outcome).items() if name != "model"}


def with_fields(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of a result as it is written today: earlier ones have ``applied`` and ``reason`` in their ``info``."""
    if "info" not in entry or "applied" in entry:
        return entry
    own = dict(entry["info"])
    before, after = own.pop("corrected_loss", (None, None))
    fields = {"applied": own.pop("applied"), "reason": own.pop("reason", None)}
    return {**entry, **fields, "loss_before": before, "loss_after": after, "info": own}
