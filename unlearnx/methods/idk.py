"""Preferred answers: those that are to be forgotten become less likely than those that correct them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from unlearnx._batches import Nest, call, take
from unlearnx._checks import check_above_zero, check_at_least_zero
from unlearnx._losses import SampleLoss
from unlearnx._pairs import Pair
from unlearnx._per_sample import per_sample
from unlearnx._sources import Changed, Samples
from unlearnx.methods.base import Work
from unlearnx.methods.both_sets import weighted
from unlearnx.methods.request import Request
from unlearnx.methods.rounds import Train
from unlearnx.methods.training_method import TrainedMethod


@dataclass
class IDK(TrainedMethod):
    """Prefer the corrected samples of a request, such as "I don't know", to those that are to be forgotten (DPO).

    ``2 / beta * softplus(-beta * margin)``, where the margin is by how much the log-probability of the corrected
    sample has risen above the original model's, less the same of the sample that is to be forgotten; beside the mean
    loss of what stays. Where both are answers to one input, as corrected labels are, the model runs on it once. The
    log-probability of a sample is minus its loss; of texts that is the sum over tokens with
    ``loss_fn=unlearnx.losses.causal_lm(per="token")``.

    Args:
        epochs: passes over what stays and the pairs.
        lr: peak learning rate.
        beta: how fast the gradient fades as the margin grows, in 1/nats.
        weight: of the mean loss on the samples that were right from the beginning, beside the pairs'.

    Raises:
        ValueError: a number is out of range, or the request is a removal: what is to be preferred is the samples of
            ``Request.correct(dataset, corrected)`` or ``Request.from_sets(..., correction=...)``.

    Source: Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", COLM 2024, section 3.2 ("preference
    optimization"); Rafailov et al., "Direct Preference Optimization", NeurIPS 2023, equation 7.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> corrected = y.clone()
        >>> corrected[:6] = (y[:6] + 1) % 3
        >>> outcome = IDK(epochs=1)(nn.Linear(8, 3), Request.correct((x, y), (x, corrected)))
        >>> outcome.applied, outcome.gradient_evaluations
        (True, 60)
    """

    _nominal_epochs: ClassVar[int] = 2
    _per: ClassVar[str] = "token"

    epochs: int | str = "auto"
    lr: float = 1e-3
    beta: float = 0.1
    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_zero(weight=self.weight)
        check_above_zero(beta=self.beta)

    def _check(self, model: nn.Module, request: Request) -> None:
        super()._check(model, request)
        if request.corrected is None:
            raise ValueError(
                "request: is a removal, and says of no sample what is preferred to it, expected "
                "Request.correct(dataset, corrected) or Request.from_sets(..., correction=...)"
            )

    def _trainer(self, work: Work, info: dict[str, Any]) -> Train:
        request = work.request
        assert request.correction is not None, "the request was checked"
        original = torch.stack([work.losses(data) for data in (request.correction, request.forget_set)], 1)
        pairs, forgotten = _pairs(request), len(original)

        @per_sample
        def both(output: Tensor, place: Tensor) -> Tensor:
            preferred, before = (original[place.clamp(min=0)].to(output) - output).unbind(1)
            paired = 2 / self.beta * F.softplus(-self.beta * (preferred - before))
            return weighted(place, self.weight * output[:, 0], paired, request.samples - forgotten, forgotten)

        around = partial(_Pair, loss=SampleLoss(self.loss_fn), one_input=request.labels_only)

        return self._training(work, info, data=pairs, loss_fn=both, around=around)


def _pairs(request: Request) -> Dataset[Any]:
    """The corrected data as inputs ((preferred x, y), (forgotten x, y), place), with labels that are the place.

    The place is that in the forget set; -1 for samples that stay, which are their own pair.
    """
    places = torch.full((request.samples,), -1)
    places[request.forget] = torch.arange(len(request.forget))
    originals = Samples(request.dataset)

    def paired(x: Nest, y: Nest, index: Tensor) -> Pair:
        x_before, y_before = originals.read(index)
        place = places[index]
        return ((x, y), (x if request.labels_only else x_before, y_before), place), place

    return Changed(request.trained_target, paired)


class _Pair(nn.Module):
    """A model that returns the losses of the preferred samples and of the forgotten ones, (N, 2)."""

    def __init__(self, model: nn.Module, loss: SampleLoss, one_input: bool):
        super().__init__()
        self.model, self._loss, self._one_input = model, loss, one_input
        self.training = model.training

    def forward(self, preferred: Pair, forgotten: Pair, place: Tensor) -> Tensor:
        (x, y), (x_before, y_before) = preferred, forgotten
        output = call(self.model, x)
        losses = self._loss.each(output, y)
        if self._one_input:
            return torch.stack([losses, self._loss.each(output, y_before)], 1)
        goes = (place >= 0).nonzero().flatten()
        before = losses.detach().clone()
        if len(goes):
            x_goes, y_goes = take(x_before, goes), take(y_before, goes)
            before = before.index_put((goes,), self._loss.each(call(self.model, x_goes), y_goes).to(before))
        return torch.stack([losses, before], 1)
