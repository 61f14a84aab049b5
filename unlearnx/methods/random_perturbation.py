"""Random perturbation of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from unlearnx._checks import check_at_least_zero
from unlearnx.methods.base import Method, Work
from unlearnx.methods.strength import given

BETA = 0.5  # where nothing tells how much is to be forgotten, and where the search begins


@dataclass
class RandomPerturbation(Method):
    """Add Gaussian noise to every parameter tensor, with ``beta`` times the standard deviation of its values.

    The noise damages all that the model has learned, so that training should follow:
    ``Pipeline([RandomPerturbation(), FineTune()])``. For the same reason, the result is applied for any loss.

    Args:
        beta: standard deviation of the noise, relative to that of the tensor's values. ``"auto"`` finds the smallest
            one that forgets.

    Raises:
        ValueError: ``beta`` is negative or not finite.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> model = nn.Linear(8, 3)
        >>> noise = RandomPerturbation(beta=0.1)(model, Request.remove((x, y), [0])).model.weight - model.weight
        >>> 0.05 < noise.std() / model.weight.std() < 0.15
        tensor(True)
    """

    _strength: ClassVar[str | None] = "beta"

    beta: float | str = "auto"
    max_increase: float | None = field(default=math.inf, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_zero(beta=given("beta", self.beta))

    def _apply(self, work: Work, info: dict[str, Any]) -> None:
        params = dict(work.model.named_parameters())

        @torch.no_grad()
        def perturb(beta: float) -> None:
            generator = torch.Generator().manual_seed(self.seed)
            for name in work.names:
                p = params[name]
                noise = torch.randn(p.shape, dtype=p.dtype, generator=generator).to(p.device)
                p.add_(beta * p.std(correction=0) * noise)

        beta = given("beta", self.beta)
        info["beta"] = beta = work.least_strength(perturb, BETA, info) if beta is None else beta
        perturb(beta)
