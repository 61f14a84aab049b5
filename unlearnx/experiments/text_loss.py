"""The loss of a method on texts."""

from __future__ import annotations

from dataclasses import replace

from torch.nn import functional as F

from unlearnx.losses import causal_lm
from unlearnx.methods import Method


def with_text_loss(method: Method) -> Method:
    """The method with :func:`unlearnx.losses.causal_lm` for its loss, unless it has one of its own.

    The mean over a text's tokens is taken, or their sum where the method's paper has that.
    """
    return replace(method, loss_fn=causal_lm(per=method._per)) if method.loss_fn is F.cross_entropy else method
