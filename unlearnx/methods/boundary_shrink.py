"""Boundary shrinking: each forgotten sample gets the label of its nearest wrong class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unlearnx._batches import Nest, call, count, one_real_tensor, rows, scores
from unlearnx._checks import check_above_zero, model_device
from unlearnx._copies import lent
from unlearnx._data import batches
from unlearnx._labels import class_axis
from unlearnx._losses import SampleLoss
from unlearnx._memory_order import ImageOrder
from unlearnx._modes import modes_kept
from unlearnx._sources import relabelled
from unlearnx.methods.base import Work
from unlearnx.methods.rounds import Train
from unlearnx.methods.training_method import TrainedMethod


@dataclass
class BoundaryShrink(TrainedMethod):
    """Train the forget set with the labels of the classes whose boundary is nearest; nothing that stays is trained on.

    The nearest class is the one that the original model predicts after a step of ``bound`` in each input that raises
    the loss most (FGSM); where it still predicts the sample's own class, the likeliest other one. BatchNorm statistics
    do not change.

    Args:
        epochs: passes over the forget set.
        lr: peak learning rate.
        bound: length of the step in each input, in standard deviations of the forget set's inputs.

    Raises:
        ValueError: ``bound`` is not above zero, the samples have more than one label, the model gives no scores of at
            least two classes, or its input is not one tensor of real numbers.

    Source: Chen et al., "Boundary Unlearning: Rapid Forgetting of Deep Networks via Shifting the Decision Boundary",
    CVPR 2023, section 3.2.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> outcome = BoundaryShrink(epochs=1)(nn.Linear(8, 3), Request.remove((x, y), range(6)))
        >>> outcome.applied, outcome.gradient_evaluations  # one for each sample's nearest class, and one to train on it
        (True, 12)
    """

    _nominal_epochs: ClassVar[int] = 5
    _keeps: ClassVar[bool] = False

    epochs: int | str = "auto"
    lr: float = 1e-3
    bound: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_zero(bound=self.bound)

    def _trainer(self, work: Work, info: dict[str, Any]) -> Train:
        data = relabelled(work.request.trained_forget_set, self._nearest(work))

        return self._training(work, info, data=data, eval_mode=True)

    def _nearest(self, work: Work) -> Tensor:
        """The nearest wrong class of each sample to forget, int64 (F,)."""
        loss, device = SampleLoss(self.loss_fn), model_device(work.model)
        model = lent(work.model)
        order, found = ImageOrder(model), []
        step = self.bound * _deviation(work)
        with modes_kept(model), torch.enable_grad():
            model.eval()
            for x, y in batches(work.request.forget_set, work.pace.batch_size, device):
                x = order(x).detach().requires_grad_()
                output = rows(call(model, x), count(y))
                _check_classes(output, y)
                (gradient,) = torch.autograd.grad(loss.total(output, y), x)
                with torch.no_grad():
                    after = scores(rows(call(model, x + step * gradient.sign()), count(y)))
                    found.append(after.scatter(1, y[:, None], -torch.inf).argmax(1))
        work.gradient_evaluations += len(work.request.forget)
        return torch.cat(found).cpu()


def _deviation(work: Work) -> float:
    """The standard deviation of the forget set's inputs."""
    n, total, squares = 0, 0.0, 0.0
    for x, _ in batches(work.request.forget_set, work.pace.batch_size):
        x = one_real_tensor(x, "along whose gradient the nearest class is sought")
        n, total, squares = n + x.numel(), total + float(x.double().sum()), squares + float(x.double().square().sum())
    return max(0.0, squares / n - (total / n) ** 2) ** 0.5


def _check_classes(output: Any, y: Nest) -> None:
    if not isinstance(y, Tensor) or y.dim() != 1 or y.is_floating_point() or class_axis(output, y) != 1:
        what = f"{y.dtype} and shape {list(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"request: has labels of {what}, expected one class for each sample to find another one")
