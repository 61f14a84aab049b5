"""How fast a model relearns what it should have forgotten."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnx._arguments import checked
from unlearnx._batches import call, moved
from unlearnx._checks import check_at_least_one, check_at_least_zero, model_device
from unlearnx._copies import independent
from unlearnx._data import Data
from unlearnx._gradients import densify_gradients
from unlearnx._losses import Loss, SampleLoss
from unlearnx._memory_order import ImageOrder
from unlearnx._models import check_gradients_possible
from unlearnx._sources import Samples
from unlearnx.metrics.classification import mean_loss


@dataclass(frozen=True)
class RelearnTime:
    """Training steps until the forget set is known again; :func:`relearn_time` counts them.

    Attributes:
        steps: of the unlearned model; infinite where the limit of steps was too low.
        reference_steps: of the retrained model, likewise.

    Example:
        >>> RelearnTime(steps=3, reference_steps=12).ratio  # four times as fast as a model that never saw the set
        0.25
    """

    steps: float
    reference_steps: float

    @property
    def ratio(self) -> float:
        """``steps / reference_steps``: about 1 is good; less shows that something was kept.

        It is 1 where neither model needs a step, infinite where only the retrained model needs none, and NaN where the
        retrained model did not relearn the set within the limit, so that there is nothing to compare with.
        """
        if math.isinf(self.reference_steps):
            return math.nan
        if self.reference_steps == 0:
            return 1.0 if self.steps == 0 else math.inf
        return self.steps / self.reference_steps


@checked
def relearn_time(
    model: nn.Module,
    original: nn.Module,
    retrained: nn.Module,
    forget: Data,
    *,
    margin: float = 0.1,
    lr: float = 1e-3,
    batch_size: int = 64,
    max_steps: int = 200,
    loss_fn: Loss = F.cross_entropy,
    seed: int = 0,
    autocast: torch.dtype | None = None,
) -> RelearnTime:
    """Steps of Adam until the loss on the forget set is down to the original model's, unlearned against retrained.

    All parameters of copies of both models are trained, on the same batches in the same order. The copies are in eval
    mode: BatchNorm keeps its statistics, even with small batches, and dropout is off. The loss on the whole forget set
    is measured before the first step and after each; of a large forget set a subset is enough.

    Published measures stop elsewhere: the anamnesis index stops when the accuracy is close to the original one. A
    retrained model may have that accuracy from the start, while its loss still differs.

    Args:
        model: the unlearned model.
        original: the model before unlearning.
        retrained: a model that never saw the forget set.
        forget: pairs (x, y); held in memory as tensors.
        margin: how far above the original model's the mean loss on the forget set may stay, in nats for cross-entropy.
            It is absolute, because the loss of a model that fits its training data is close to zero.
        lr: learning rate of Adam, constant.
        batch_size: samples in one step.
        max_steps: limit of steps for each model.
        loss_fn: ``loss_fn(output, y)``: losses per sample, their mean or their sum.
        seed: of the order of the samples.
        autocast: dtype for the layers that mixed precision speeds up; None keeps the model's own dtype.

    Raises:
        ValueError: an argument is out of range, the loss of the original model is not finite, or this is called inside
            ``torch.inference_mode()``, whether or not a step of training turns out to be needed.

    Source: Golatkar et al., "Eternal Sunshine of the Spotless Net", CVPR 2020 (relearn time); Chundawat et al.,
    "Zero-Shot Machine Unlearning", TIFS 2023 (its ratio, the anamnesis index).

    Example:
        >>> forget = torch.randn(20, 8), torch.arange(20) % 3
        >>> original, retrained = (nn.Linear(8, 3) for _ in range(2))
        >>> relearn_time(original, original, retrained, forget, max_steps=5).steps  # nothing was forgotten
        0.0
    """
    check_gradients_possible()
    check_at_least_one(batch_size=batch_size, max_steps=max_steps)
    check_at_least_zero(margin=margin, lr=lr)
    for name, start in (("model", model), ("retrained", retrained)):
        if not any(True for _ in start.parameters()):
            raise ValueError(f"{name}: has no parameters, expected some to train")
    target = mean_loss(original, loss_fn, forget, autocast=autocast) + margin
    if not math.isfinite(target):
        raise ValueError(f"original: its loss on the forget set is {target - margin}, expected a finite number")

    def steps(start: nn.Module) -> float:
        losses = _losses(start, forget, lr, batch_size, max_steps, loss_fn, seed, autocast)
        return next((float(n) for n, loss in enumerate(losses) if loss <= target), math.inf)

    return RelearnTime(steps(model), steps(retrained))


def _losses(
    model: nn.Module,
    forget: Data,
    lr: float,
    batch_size: int,
    max_steps: int,
    loss_fn: Loss,
    seed: int,
    autocast: torch.dtype | None,
) -> Iterator[float]:
    """Train a copy; yields its mean loss on all samples before the first step and after each, until it is infinite."""
    model = independent(model).eval().requires_grad_(True)
    device, order = model_device(model), ImageOrder(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    loss, samples = SampleLoss(loss_fn), Samples(forget)
    epoch: list[Tensor] = []
    for step in range(max_steps + 1):
        value = mean_loss(model, loss_fn, forget, autocast=autocast)
        yield value
        if step == max_steps or not math.isfinite(value):
            return
        epoch = epoch or list(torch.randperm(len(samples), generator=generator).split(batch_size))
        index = epoch.pop(0)
        x, y = (moved(nest, device) for nest in samples.read(index))
        with torch.enable_grad():
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                output = call(model, order(x))
            optimizer.zero_grad(set_to_none=True)
            loss.total(output, y).div(len(index)).backward()
        densify_gradients(model)
        optimizer.step()
