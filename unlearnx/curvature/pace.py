"""Whether rules are worth their passes where some parameters have none."""

from __future__ import annotations

from dataclasses import dataclass

LOOPED, BY_RULES = 2, 6  # samples of the parts that are timed: the first of a loop is slower than the others


@dataclass
class Pace:
    """Seconds a sample of two ways, which the first parts of the data tell.

    Parameters without a rule need a forward and a backward pass of their own, sample by sample. Where samples are
    large, that costs nearly what all parameters cost that way, and the pass of the rules is lost.

    Attributes:
        loop: seconds a sample of a loop over single samples for all parameters; None before the first.
        rules: the same of rules, and single samples for the others.
    """

    loop: float | None = None
    rules: float | None = None

    @property
    def samples(self) -> int | None:
        """Samples of the next part; None for as many as fit."""
        if self.loop is None:
            return LOOPED
        return BY_RULES if self.rules is None else None

    @property
    def loop_is_next(self) -> bool:
        """Whether the next part is for the loop."""
        return self.loop is None or (self.rules is not None and self.loop < self.rules)
