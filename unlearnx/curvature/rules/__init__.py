"""Rules: functions for whose parameters derivatives follow from inputs and output gradients; a file a family."""

from unlearnx.curvature.rules import (
    activation,
    attention,
    convolution,
    elementwise,
    embedding,
    expanded,
    linear,
    losses,
    normalisation,
    products,
    recurrent,
)
from unlearnx.curvature.rules.own import register_rule

__all__ = [
    "activation",
    "attention",
    "convolution",
    "elementwise",
    "embedding",
    "expanded",
    "linear",
    "losses",
    "normalisation",
    "products",
    "recurrent",
    "register_rule",
]
