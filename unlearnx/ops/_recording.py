"""Flags by which a curvature engine tells layers which derivatives it needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Recording:
    """Set by the engine before each forward or backward pass; read by the layers during the pass.

    Attributes:
        recording: the gradients taken now will be differentiated again. The values of the weights' gradients are then
            not used, only their graph is, and layers do not compute them. False during the engine's forward pass, in
            which a model may take gradients itself.
        values: whether the values of the inputs' gradients are used.
        tangents: the backward pass differentiates recorded gradients with respect to the output's gradient only; layers
            skip the derivatives with respect to inputs and weights.
    """

    recording: bool = False
    values: bool = True
    tangents: bool = False
