"""Kronecker factors of the training data, fitted once, in the place of the retain set."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from unlearnx.curvature.kfac.factors import Factors
from unlearnx.methods.base import Method, Work
from unlearnx.methods.request import Request


@dataclass(kw_only=True)
class FromFactors(Method):
    """A method that needs no retain set where it is given the factors of the training data.

    The parameters that may change are then those of the factors, and no pass is taken over what stays. Where the
    request has no retain set, harm is measured on its held-out data; without these, the loss on what stays is estimated
    by the factors to second order, and noted as ``info["estimated_increase"]``.

    Args:
        factors: of the training data, fitted for the model as it is; see :meth:`unlearnx.curvature.Factors.load`.
    """

    factors: Factors | None = None

    @property
    def _stored(self) -> Factors | None:
        return self.factors

    def _check(self, model: nn.Module, request: Request) -> None:
        super()._check(model, request)
        if self.factors is not None:
            self.factors.check_fits(model)
            if self.factors.samples <= len(request.forget):
                raise ValueError(
                    f"factors: were fitted on {self.factors.samples} samples, expected more than the "
                    f"{len(request.forget)} to forget"
                )

    def _names(self, model: nn.Module) -> list[str]:
        if self.factors is None:
            return super()._names(model)
        self.factors.check_params(model, self.params)
        return self.factors.layout.names


def training_samples(work: Work) -> int:
    """The number N of samples that the model was trained on."""
    factors = work.method._stored
    return work.request.samples if factors is None else factors.samples
