"""Levels: what is expected of a model that never saw some samples, with intervals."""

from __future__ import annotations

from dataclasses import dataclass

# From the estimate, in accuracy, or in nats of texts:
CLOSE = 0.01  # what is close enough where it is well known
NEAR = 0.05  # and twice as much from either end of its interval: no different


@dataclass(frozen=True)
class Level:
    """An estimate with its 95 % interval: of a share, in [0, 1], or of a loss, in nats.

    Example:
        >>> level = Level(0.9, 0.85, 0.93)
        >>> level.furthest(0.87), level.agrees(0.87), level.agrees(0.96)
        (0.06, True, False)
    """

    estimate: float
    low: float
    high: float

    def furthest(self, value: float) -> float:
        """Distance of `value` to the farther end of the interval."""
        return round(max(abs(value - self.low), abs(value - self.high)), 12)

    @property
    def leeway(self) -> float:
        """How close to the estimate is close enough: a tenth of the interval, from 1 point, or 0.01 nats, to 5."""
        return min(NEAR, max(CLOSE, (self.high - self.low) / 10))

    @property
    def from_estimate(self) -> Level:
        """The interval as distances from the estimate."""
        return Level(0.0, self.low - self.estimate, self.high - self.estimate)

    def is_near(self, value: float) -> bool:
        """Whether a value is within 5 points, or 0.05 nats, of the estimate."""
        return abs(value - self.estimate) <= NEAR

    def agrees(self, value: float) -> bool:
        """Whether a value is within 5 points of the estimate, and within 10 of both ends of the interval."""
        return self.is_near(value) and self.furthest(value) <= 2 * NEAR

    def outside(self, value: float) -> float:
        """How far a value is outside of the interval; 0 within."""
        return max(0.0, self.low - value, value - self.high)


@dataclass(frozen=True)
class UnseenLevel:
    """What a model that never saw the forget set would do on it, with the labels that are to be forgotten.

    Attributes:
        accuracy: share of the forget set that such a model gives those labels, in [0, 1]; None where unknown, and of
            texts.
        confidence: mean probability that it gives to those labels, in [0, 1]; None where unknown, and of texts.
        loss: mean cross-entropy in nats, of texts the mean over their tokens' means; None where unknown, and where more
            than a tenth of the labels may be wrong: their loss depends on how sure a model is of its errors, which
            differs widely among models trained alike.
        basis: what these rest on, or why they are unknown: a sentence.
        of_held_out: whether the loss is that of held-out texts: it is then read anew of a model that has changed.

    Example:
        >>> UnseenLevel(None, None, None, "The outputs are no class scores.").known
        False
    """

    accuracy: Level | None
    confidence: Level | None
    loss: Level | None
    basis: str
    of_held_out: bool = False

    @property
    def known(self) -> bool:
        """Whether there is an estimate."""
        return self.accuracy is not None or self.loss is not None

    @property
    def never_given(self) -> bool:
        """Whether such a model never gives those labels, as of a whole class."""
        return self.accuracy is not None and self.accuracy.high == 0
