"""Representation misdirection: hidden states of the forget set are led astray, those of what stays are kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from unlearnx._batches import Nest, moved
from unlearnx._checks import check_at_least_zero, model_device
from unlearnx._copies import independent, lent
from unlearnx._losses import SampleLoss, wide
from unlearnx._per_sample import per_sample
from unlearnx._precision import autocast
from unlearnx.methods.base import Work
from unlearnx.methods.both_sets import BothSets, Marked
from unlearnx.methods.distillation import lessons
from unlearnx.methods.hidden_states import HiddenStates, check_depends, layer_of, states_of
from unlearnx.methods.rounds import Train
from unlearnx.methods.training_method import TrainedMethod

TIMES = 5.0  # the norm of a steered state, in those of the original ones: beta of adaptive RMU


@dataclass
class RMU(TrainedMethod):
    """Lead the hidden states of the forget set to a random direction, and keep those of what stays as they were.

    ``mean (h - c u)^2`` over the forget set and ``weight`` times ``mean (h - h_original)^2`` over what stays, where h
    are the hidden states that a module in the middle returns, and u is one random vector of length one. What comes
    behind that module is not run, so that an epoch costs as much as the layers before it. Positions of texts count
    where their labels do.

    Args:
        epochs: passes over both sets.
        lr: peak learning rate.
        layer: name of the module whose output is steered, in ``model.named_modules()``; None for the block at seven
            sixteenths of the depth, as open-unlearning has it for a Llama of 16 blocks, or, in a model without a list
            of blocks, the module with parameters before the last.
        coefficient: c, the length that the states are steered to; None for 5 times that of each original state.
        weight: of the mean over what stays, beside the forget set's.

    Raises:
        ValueError: a number is out of range, the model has no such layer, or no chosen parameter comes before it.

    Source: Li et al., "The WMDP Benchmark: Measuring and Reducing Malicious Use with Unlearning", ICML 2024,
    section 4; without `coefficient` Dang et al., "On Effects of Steering Latent Representation for Large Language Model
    Unlearning", AAAI 2025, equation 12.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> outcome = RMU(epochs=1)(model, Request.remove((x, y), range(6)))
        >>> outcome.applied, torch.equal(outcome.model[2].weight, model[2].weight)  # behind the layer nothing changes
        (True, True)
    """

    _nominal_epochs: ClassVar[int] = 2
    _needs_whole: ClassVar[bool] = True

    epochs: int | str = "auto"
    lr: float = 1e-3
    layer: str | None = None
    coefficient: float | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_zero(coefficient=self.coefficient, weight=self.weight)

    def _trainer(self, work: Work, info: dict[str, Any]) -> Train:
        info["layer"] = layer = layer_of(work.model, self.layer)
        around = partial(HiddenStates, layer=layer)
        original = lent(around(independent(work.model))).eval()
        check_depends(around(work.model), work.names, work.request.dataset)
        both, device, ignored = BothSets(work.request), model_device(work.model), SampleLoss(self.loss_fn).ignore_index
        direction: list[Tensor] = []

        def targets(x: Nest, y: Marked, index: Tensor) -> Tensor:
            with torch.no_grad(), autocast(device, work.pace.autocast):
                states = wide(states_of(original, moved(x, device)))
            axis = _axis(states)
            if not direction:
                direction.append(_direction(states.shape[axis], self.seed).to(states))
            u = direction[0].view([-1 if i == axis % states.dim() else 1 for i in range(states.dim())])
            lengths = TIMES * states.norm(dim=axis, keepdim=True) if self.coefficient is None else self.coefficient
            goes = (y[1] >= 0).to(device).view(-1, *[1] * (states.dim() - 1))
            return torch.where(goes, lengths * u, states)

        def counts(x: Nest, y: Marked, target: Tensor) -> Tensor | None:
            labels = y[0]
            if target.dim() != 3 or not isinstance(labels, Tensor) or labels.shape != target.shape[:2]:
                return None
            return None if labels.is_floating_point() else labels != ignored

        data = lessons(both.data, targets, counts)

        @per_sample
        def distance(states: Tensor, lesson: tuple[Marked, Tensor, Tensor | None]) -> Tensor:
            (_, place), target, counted = lesson
            squares = (wide(states) - target).square()
            if counted is None:
                each = squares.flatten(1).mean(1)
            else:
                each = squares.mean(2).where(counted, 0).sum(1) / counted.sum(1).clamp(min=1)
            return both.weighted(place, self.weight * each, each)

        return self._training(work, info, data=data, loss_fn=distance, around=around)


def _axis(states: Tensor) -> int:
    """The dimension of the features: channels of images (N, C, H, W), and the last one of vectors and sequences."""
    return 1 if states.dim() >= 4 else -1


def _direction(width: int, seed: int) -> Tensor:
    """A random vector of length one, with entries at least zero as in the source, (width,)."""
    drawn = torch.rand(width, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm()
