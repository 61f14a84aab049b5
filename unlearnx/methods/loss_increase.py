"""The loss on what stays where it is not at hand, estimated by stored factors."""

from __future__ import annotations

import torch

from unlearnx.curvature.kfac.factors import Factors
from unlearnx.methods.chosen_parameters import ChosenParameters


class LossIncrease:
    """How much a change of the parameters raises the mean loss on the retain set, to second order and at most.

    ``N / (N - m) * d^T F d / 2`` for a change d: the loss of all N training samples is taken to be at a minimum, and
    the curvature of the m samples to forget counts as if it were that of the others.
    """

    def __init__(self, factors: Factors, parameters: ChosenParameters, forgotten: int):
        self._factors, self._parameters, self._start = factors, parameters, parameters.read()
        self._share = factors.samples / (factors.samples - forgotten)

    def __call__(self) -> float:
        """The increase since the beginning, in the unit of the loss."""
        change = {name: p.detach() - self._start[name] for name, p in self._parameters.params.items()}
        product = self._factors.matvec(change)
        return self._share / 2 * sum(float((t * product[name]).sum(dtype=torch.float64)) for name, t in change.items())
