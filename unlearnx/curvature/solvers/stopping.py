"""When LiSSA stops: the rule for one right-hand side, and how far a run with several has come."""

from __future__ import annotations

import math

from torch import Tensor

from unlearnx.curvature.solvers.system import System

CONVERGED = "converged"


class Progress:
    """Which right-hand sides of a run are active, how many iterations it took and why it ended."""

    def __init__(self, system: System, rules: list[StoppingRule], tolerance: float, depth: int):
        self.system, self.rules, self.tolerance, self.depth = system, rules, tolerance, depth
        self.active = list(range(len(rules)))
        self.iteration = 0
        system.stopped = f"reached {depth} iterations"

    @property
    def over(self) -> bool:
        """Whether the run is over: no right-hand side is active, or all iterations are done."""
        return not self.active or self.iteration >= self.depth

    def record(self, updates: list[float], h: Tensor) -> bool:
        """Record the updates of an iteration, NaN where there was none; `h` is the iterate after it.

        Returns whether an update reached its ``update_target``, so that the residual of h was computed to decide.
        """
        self.iteration += 1
        self.system.iterations += len(self.active)
        self.system.history.append(updates)
        reasons = {k: self.rules[k].reason_to_stop(updates[k]) for k in self.active}
        small = [k for k in self.active if reasons[k] == CONVERGED]
        if small:
            for k, residual in zip(small, self.system.residuals(h[small] / self.system.scale, small), strict=True):
                if residual > self.tolerance:  # the update's L1 norm is small, but the residual, an L2 norm, is not yet
                    self.rules[k].update_target = updates[k] * self.tolerance / residual / 2
                    reasons[k] = None
        self.active = [k for k in self.active if reasons[k] is None]
        if not self.active:
            self.system.stopped = f"{reasons.popitem()[1]} at iteration {self.iteration}"
        return bool(small)


class StoppingRule:
    """When one right-hand side stops: by the published rule, or at an update of at most `update_target`.

    The rule must stay the same as in csrc/common/patience.h.
    """

    def __init__(self, update_target: float, patience: int):
        self.update_target, self.patience = update_target, patience
        self.smallest, self.since_smallest = math.inf, 0

    def reason_to_stop(self, update: float) -> str | None:
        """Why the run is over after an update of this size, or None."""
        if not math.isfinite(update):
            return "not finite"
        if update <= self.update_target:
            return CONVERGED
        if update > self.smallest and self.since_smallest >= self.patience:
            return "updates no longer shrank"
        if update < self.smallest:
            self.smallest, self.since_smallest = update, 1
        self.since_smallest += 1
        return None
