"""Gradients as optimizers take them."""

from __future__ import annotations

from torch import nn


def densify_gradients(model: nn.Module) -> None:
    """Make sparse gradients dense, which those of an embedding with ``sparse=True`` are: AdamW takes no others."""
    for parameter in model.parameters():
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.to_dense()
