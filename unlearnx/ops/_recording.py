"""What a curvature engine wants of the derivatives that it records."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Recording:
    """Flags that layers read while their derivatives are taken; an engine sets them as it goes on.

    Attributes:
        recording: whether the gradients taken from here on are those to differentiate again. The weights' have no
            values then, only a graph. Before, a forward pass may take gradients of its own.
        values: whether the gradients of inputs are to have values.
        tangents: whether backward passes from here on differentiate recorded gradients with respect to the output's
            gradient alone, and not to inputs and weights.
    """

    recording: bool = False
    values: bool = True
    tangents: bool = False
