"""Rules: functions for whose parameters derivatives follow from inputs and output gradients; a file a family."""

from unlearnx.curvature.rules import (
    attention,
    convolution,
    elementwise,
    embedding,
    expanded,
    linear,
    normalisation,
    products,
    recurrent,
)
from unlearnx.curvature.rules.own import register_rule

__all__ = [
    "attention",
    "convolution",
    "elementwise",
    "embedding",
    "expanded",
    "linear",
    "normalisation",
    "products",
    "recurrent",
    "register_rule",
]
