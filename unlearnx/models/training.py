"""Training of the experiments' models."""

from __future__ import annotations

import math
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from unlearnx._arguments import check_fields, checked
from unlearnx._batches import Nest, call, count, moved, tensors
from unlearnx._calls import check_call
from unlearnx._checks import (
    Params,
    check_at_least_one,
    check_at_least_zero,
    check_fraction,
    model_device,
    select_params,
)
from unlearnx._data import Data, check_visits_all, size
from unlearnx._epochs import joins_last, steps_of_epoch
from unlearnx._files import write_atomically
from unlearnx._gradients import densify_gradients
from unlearnx._known_labels import all_labels
from unlearnx._losses import Loss, SampleLoss
from unlearnx._memory_order import ImageOrder
from unlearnx._progress import progress_bar
from unlearnx._random import forked_random
from unlearnx._sources import Samples
from unlearnx.data.augmentation import augmented


@dataclass
class Training:
    """AdamW with a one-cycle schedule of the learning rate, for training, retraining and fine-tuning.

    Attributes:
        epochs: passes over the data.
        lr: highest learning rate of the schedule.
        batch_size: samples in one step.
        weight_decay: of AdamW.
        warmup: share of the steps during which the learning rate rises.
        anchor: weight of ``anchor / 2 * ||theta - theta_0||^2``, added to the mean loss.
        loss_fn: ``loss_fn(output, y)``: losses per sample, their mean or their sum.
        params: parameters to train, given as for :func:`unlearnx.curvature.fisher_diagonal`.
        autocast: dtype for the layers that mixed precision speeds up; None keeps the model's own dtype.
        seed: of the order of the samples and of dropout.
        progress: show a progress bar (needs ``unlearnx[experiments]``).

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> model = nn.Linear(8, 3)
        >>> before = mean_loss(model, nn.functional.cross_entropy, (x, y))
        >>> seconds = Training(epochs=5, lr=1e-2, batch_size=20).run(model, (x, y))
        >>> mean_loss(model, nn.functional.cross_entropy, (x, y)) < before
        True
    """

    epochs: int
    lr: float = 1e-3
    batch_size: int = 128
    weight_decay: float = 1e-4
    warmup: float = 0.2
    anchor: float = 0.0
    loss_fn: Loss = F.cross_entropy
    params: Params = None
    autocast: torch.dtype | None = None
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least_one(epochs=self.epochs, batch_size=self.batch_size)
        check_fraction(warmup=self.warmup)
        check_at_least_zero(lr=self.lr, weight_decay=self.weight_decay, anchor=self.anchor)

    @checked
    def run(self, model: nn.Module, data: Data, *, checkpoint: Path | None = None) -> float:
        """Train `model` in place.

        Every module keeps its mode: a BatchNorm in eval mode keeps its statistics. The state of torch's random
        generators is restored afterwards.

        Args:
            model: the model, in the mode it should train in: call ``train()`` first if dropout and BatchNorm should be
                on.
            data: samples (x, y), read anew in every epoch, so that augmentation is alive. Of a DataLoader the dataset
                is read, by its workers, in an order and in batches of this training's.
            checkpoint: file that the state is saved to after each epoch, and resumed from if it exists.

        Returns:
            Seconds of training, including those before it was resumed.

        Raises:
            ValueError: the checkpoint is of a training with other settings or data.
            FloatingPointError: the loss of an epoch is not finite.
        """
        size(data)
        check_visits_all(data)
        check_call(model, self.loss_fn, data, deterministic=False, penalty=True)
        with forked_random(model_device(model), seed=self.seed):
            return _Run(self, model, self.read(data), checkpoint).finish()

    def read(self, data: Data) -> Data:
        """The data as passes read them."""
        return data

    def optimizer(self, parameters: list[nn.Parameter], steps: int) -> tuple[Optimizer, LRScheduler]:
        """What changes the parameters in so many steps, and the schedule of its learning rate."""
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)
        # OneCycleLR divides 0 by 0 where the warm-up is exactly one step.
        warmup = self.warmup if not math.isclose(self.warmup * steps, 1) else 2 / steps
        return optimizer, OneCycleLR(optimizer, self.lr, total_steps=steps, pct_start=warmup)


@dataclass
class ImageTraining(Training):
    """The recipe by which networks for images train in the least time: crops, mirrors, and SGD in one cycle.

    SGD with Nesterov's momentum, whose learning rate rises linearly to its highest and falls linearly to zero. A model
    that is unlearned should be compared with one that was retrained as fast as is known: no speed comes of a slow
    retraining then.

    Attributes:
        epochs: passes over the data.
        lr: highest learning rate of the schedule.
        batch_size: images in one step.
        weight_decay: of SGD.
        momentum: of SGD.
        pad: pixels by which images are moved at most, see :func:`unlearnx.data.augmented`.
        warmup, anchor, loss_fn, params, autocast, seed, progress: as for :class:`Training`.

    Source: after Page, "How to Train Your ResNet", 2018.

    Example:
        >>> x, y = torch.randn(60, 3, 8, 8), torch.arange(60) % 3
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
        >>> seconds = ImageTraining(epochs=2, lr=0.01, batch_size=20).run(model, (x, y))
        >>> seconds > 0
        True
    """

    lr: float = 0.2
    batch_size: int = 256
    weight_decay: float = 5e-4
    momentum: float = 0.9
    pad: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(momentum=self.momentum)
        check_at_least_zero(pad=self.pad)

    def read(self, data: Data) -> Data:
        """The data as passes read them: moved and mirrored."""
        return augmented(data, self.pad)

    def optimizer(self, parameters: list[nn.Parameter], steps: int) -> tuple[Optimizer, LRScheduler]:
        """What changes the parameters in so many steps, and the schedule of its learning rate."""
        momentum: dict[str, Any] = {"momentum": self.momentum, "nesterov": self.momentum > 0}
        optimizer = torch.optim.SGD(parameters, lr=self.lr, weight_decay=self.weight_decay, **momentum)

        def part(step: int) -> float:
            done = min(1.0, (step + 0.5) / steps)
            return done / self.warmup if done <= self.warmup else (1 - done) / (1 - self.warmup)

        return optimizer, LambdaLR(optimizer, part)


class _Run:
    """A training in progress, with everything that a checkpoint has to save."""

    def __init__(self, training: Training, model: nn.Module, data: Data, checkpoint: Path | None):
        self.training, self.model, self.checkpoint = training, model, checkpoint
        self.samples = Samples(data)
        self.n = len(self.samples)
        self.device = model_device(model)
        self.order = ImageOrder(model)
        if self.order.taken(self.samples.read(slice(0, 2))[0]):
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loss = SampleLoss(training.loss_fn)
        own = dict(model.named_parameters())
        self.names = select_params(model, training.params)
        self.chosen = [own[name] for name in self.names]
        self.origin = [p.detach().clone() for p in self.chosen] if training.anchor else []
        self.batches = -(-self.n // training.batch_size) - joins_last(self.n, training.batch_size, model)
        self.optimizer, self.schedule = training.optimizer(self.chosen, max(2, self.batches * training.epochs))
        self.epoch, self.seconds = 0, 0.0
        self.key = "" if checkpoint is None else self._key(data)

    def _key(self, data: Data) -> str:
        """What a checkpoint has to be of, to be resumed from."""
        recipe = {k: v for k, v in vars(self.training).items() if k not in ("loss_fn", "params", "progress")}
        labels = 0
        for t in tensors(all_labels(data)):
            labels = zlib.crc32(t.detach().cpu().contiguous().numpy().tobytes(), labels)
        return f"{recipe}, {self.n} samples, labels {labels:08x}, parameters {', '.join(self.names)}"

    def finish(self) -> float:
        checkpoint = self.checkpoint
        if checkpoint is not None and checkpoint.exists():
            self._load(checkpoint)
        total = self.training.epochs * self.batches
        frozen = [p for n, p in self.model.named_parameters() if n not in set(self.names) and p.requires_grad]
        woken = [p for p in self.chosen if not p.requires_grad]
        for p in frozen + woken:
            p.requires_grad_(not p.requires_grad)
        try:
            with progress_bar("training", total, self.training.progress) as advance:
                advance(self.epoch * self.batches)
                while self.epoch < self.training.epochs:
                    self._run_epoch(advance)
                    if checkpoint is not None:
                        write_atomically(checkpoint, lambda file: torch.save(self._state(), file))
        finally:
            for p in frozen + woken:
                p.requires_grad_(not p.requires_grad)
        return self.seconds

    def _run_epoch(self, advance) -> None:
        start = time.perf_counter()
        order = steps_of_epoch(self.n, self.training.batch_size, self.model)
        seed = hash((self.training.seed, self.epoch)) % 2**63  # of the workers; drawn, it would change later numbers
        mean = torch.zeros((), device=self.device)
        for x, y in self.samples.batches(order, seed):
            mean += self._step(moved(x, self.device), moved(y, self.device))
            advance(1)
        self.optimizer.zero_grad(set_to_none=True)
        if not mean.isfinite():
            raise FloatingPointError(
                f"the training loss of epoch {self.epoch + 1} is not finite at lr={self.training.lr}"
            )
        self.epoch += 1
        self.seconds += time.perf_counter() - start

    def _step(self, x: Nest, y: Nest) -> Tensor:
        dtype = self.training.autocast
        with torch.enable_grad():
            with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
                output = call(self.model, self.order(x))
            mean = self.loss.total(output, y) / count(y)
            objective = mean
            for p, p0 in zip(self.chosen, self.origin, strict=False):
                objective = objective + self.training.anchor / 2 * (p - p0).square().sum()
            self.optimizer.zero_grad(set_to_none=True)
            objective.backward()
        densify_gradients(self.model)
        self.optimizer.step()
        self.schedule.step()
        return mean.detach()

    def _state(self) -> dict:
        return {
            "key": self.key,
            "epoch": self.epoch,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "origin": self.origin,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def _load(self, checkpoint: Path) -> None:
        state = torch.load(checkpoint, map_location=self.device, weights_only=True)
        if state["key"] != self.key:
            raise ValueError(
                f"checkpoint: {checkpoint} is of another training ({state['key']}), expected this one or no file"
            )
        self.epoch, self.seconds = state["epoch"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.origin = state["origin"]
        torch.set_rng_state(state["random"].cpu())
        if state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"].cpu(), self.device)
