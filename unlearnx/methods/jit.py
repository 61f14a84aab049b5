"""Just in time: the model becomes smooth around what it forgets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unlearnx._batches import Nest, call, changed, count, rows, scores, tensors
from unlearnx._checks import check_above_zero, check_at_least_one
from unlearnx._pairs import Pair
from unlearnx._per_sample import per_sample
from unlearnx._sources import Changed
from unlearnx.methods.base import Work
from unlearnx.methods.rounds import Train
from unlearnx.methods.training_method import TrainedMethod


@dataclass
class JiT(TrainedMethod):
    """Make the outputs change less around each sample of the forget set; neither labels nor what stays are trained on.

    Minimises ``mean_i ||f(x) - f(x + e_i)|| / ||e_i||`` over random Gaussian e_i: what a model has memorised of a
    sample makes it steep there. BatchNorm statistics do not change.

    Args:
        epochs: passes over the forget set.
        lr: peak learning rate.
        sigma: standard deviation of the noise e_i, in the unit of the inputs.
        samples: number of noisy versions of each sample in a step.

    Raises:
        ValueError: a number is out of range, or the inputs hold no real numbers to add noise to.

    Source: Foster et al., "Zero-Shot Machine Unlearning at Scale via Lipschitz Regularization", 2024, equation 6.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> model, request = nn.Linear(8, 3), Request.remove((x, y), range(6))
        >>> outcome = JiT(epochs=3, max_increase=9.0)(model, request)
        >>> bool(outcome.model.weight.norm() < model.weight.norm())
        True
    """

    _nominal_epochs: ClassVar[int] = 1
    _keeps: ClassVar[bool] = False

    epochs: int | str = "auto"
    lr: float = 3e-4
    sigma: float = 0.5
    samples: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_zero(sigma=self.sigma)
        check_at_least_one(samples=self.samples)

    def _trainer(self, work: Work, info: dict[str, Any]) -> Train:
        def unlabelled(x: Nest, y: Nest, index: Tensor) -> Pair:
            if not any(t.is_floating_point() for t in tensors(x)):
                raise ValueError("request: has inputs without real numbers, expected some to add noise to")
            return x, index

        data = Changed(work.request.trained_forget_set, unlabelled)
        around = partial(_Steepness, sigma=self.sigma, samples=self.samples)

        @per_sample
        def steepness(output: Tensor, _: Tensor) -> Tensor:
            return output

        return self._training(work, info, data=data, loss_fn=steepness, eval_mode=True, around=around)


class _Steepness(nn.Module):
    """How much a model's outputs change around its inputs, for each sample, (N,)."""

    def __init__(self, model: nn.Module, sigma: float, samples: int):
        super().__init__()
        self.model, self._sigma, self._samples = model, sigma, samples
        self.training = model.training

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        x: Nest = kwargs or (args[0] if len(args) == 1 else args)
        n = count(x)

        def outputs(x: Nest) -> Tensor:
            return scores(rows(call(self.model, x), n)).float().reshape(n, -1)

        own, total = outputs(x), torch.zeros((), device=next(tensors(x)).device)
        for _ in range(self._samples):
            lengths: list[Tensor] = []

            def noisy(t: Tensor, lengths: list[Tensor] = lengths) -> Tensor:
                if not t.is_floating_point():
                    return t
                noise = self._sigma * torch.randn_like(t)
                lengths.append(noise.reshape(n, -1).square().sum(1))
                return t + noise

            moved = outputs(changed(x, noisy))
            total = total + (own - moved).norm(dim=1) / torch.stack(lengths).sum(0).sqrt()
        return total / self._samples
