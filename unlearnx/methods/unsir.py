"""UNSIR: noise that a model knows least as what it is to forget, then repair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset

from unlearnx._batches import Nest, call, count, joined, moved, one_real_tensor
from unlearnx._checks import check_at_least_one, check_at_least_zero, model_device
from unlearnx._copies import lent
from unlearnx._data import dataset_of, size
from unlearnx._losses import SampleLoss
from unlearnx._modes import modes_kept
from unlearnx._random import forked_random
from unlearnx._sources import Samples
from unlearnx.methods.base import Work
from unlearnx.methods.rounds import Train
from unlearnx.methods.training_method import TrainedMethod

NOISE_LR = 0.1  # of Adam, as in the source
WEIGHT = 0.1  # of the noise's mean square length, as in the source


@dataclass
class UNSIR(TrainedMethod):
    """Impair the model with noise that has the forget set's labels, beside what stays; then train on what stays alone.

    The noise is what raises the loss of these labels most: trained on as if it were the class, it takes the place of
    what the model knows of it.

    Args:
        epochs: passes over what stays and the noise, and as many over what stays alone.
        lr: peak learning rate of the first, the impairing ones.
        repair_lr: peak learning rate of the others.
        noise: number of noise samples that are learned.
        repeats: how often each noise sample is in a pass.
        steps: of Adam, in which the noise is learned.
        retained: number of samples of what stays, drawn at random, that are trained on; None for all. The source takes
            a part.

    Raises:
        ValueError: a number is out of range, or an input is not one tensor of real numbers.

    Source: Tarun et al., "Fast Yet Effective Machine Unlearning", TNNLS 2023, algorithm 1.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> outcome = UNSIR(epochs=1, noise=5, repeats=2)(nn.Linear(8, 3), Request.remove_class((x, y), 2))
        >>> outcome.gradient_evaluations  # 40 steps with 5 samples of noise, 10 of it trained on, twice 40 that stay
        290
    """

    _nominal_epochs: ClassVar[int] = 1

    epochs: int | str = "auto"
    lr: float = 2e-3
    repair_lr: float = 1e-3
    noise: int = 64
    repeats: int = 8
    steps: int = 40
    retained: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(noise=self.noise, repeats=self.repeats, steps=self.steps, retained=self.retained)
        check_at_least_zero(repair_lr=self.repair_lr)

    def _trainer(self, work: Work, info: dict[str, Any]) -> Train:
        retained = self._retained(work)
        noise = self._learned(work)
        impairing: Dataset[Any] = ConcatDataset([retained, *[noise] * self.repeats])

        def train(epochs: int, rate: float) -> None:
            self._train(work, info, epochs, rate * self.lr, data=impairing)
            self._train(work, info, epochs, rate * self.repair_lr, data=retained)

        return train

    def _heal(self, work: Work, info: dict[str, Any], epochs: int, rate: float) -> None:
        self._train(work, info, epochs, rate * self.repair_lr, data=self._retained(work))

    def _retained(self, work: Work) -> Dataset[Any]:
        """What is trained on of what stays."""
        data = work.request.trained_target
        if self.retained is None:
            return data
        order = torch.randperm(size(data), generator=torch.Generator().manual_seed(self.seed))
        return Subset(data, order[: self.retained].tolist())

    def _learned(self, work: Work) -> Dataset[Any]:
        """Noise with labels of the forget set, at which the model's loss is greatest."""
        samples = Samples(work.request.forget_set)
        x = one_real_tensor(samples.read(slice(0, 1))[0], "to learn noise")
        index = torch.arange(self.noise) % len(samples)
        y = joined([labels for _, labels in samples.batches(index.split(self.batch_size))])
        device, model = model_device(work.model), lent(work.model)
        with forked_random(device, seed=self.seed), modes_kept(model), torch.enable_grad():
            model.eval()
            found = _loudest(
                model, SampleLoss(self.loss_fn), torch.randn(self.noise, *x.shape[1:]).to(x).to(device), y, self.steps
            )
        work.gradient_evaluations += self.steps * self.noise
        return dataset_of(found.to(x.device), y)


def _loudest(model: nn.Module, loss: SampleLoss, noise: Tensor, y: Nest, steps: int) -> Tensor:
    """The noise after gradient ascent on the loss of the labels, held back by its length."""
    labels, n = moved(y, noise.device), count(y)
    noise.requires_grad_()
    optimizer = torch.optim.Adam([noise], lr=NOISE_LR)
    for _ in range(steps):
        quiet = WEIGHT * noise.square().sum() / n
        objective = quiet - loss.total(call(model, noise), labels) / n
        (noise.grad,) = torch.autograd.grad(objective, noise)
        optimizer.step()
    return noise.detach()
