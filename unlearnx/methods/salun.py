"""SalUn: training on a relabelled forget set, restricted to the weights that the forget set depends on most."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from unlearnx._batches import Nest, replaced, scores, take
from unlearnx._checks import check_fraction
from unlearnx._data import size
from unlearnx._labels import class_axis, counted, is_binary
from unlearnx._losses import SampleLoss
from unlearnx._modes import evaluating
from unlearnx._pairs import Pair
from unlearnx._sources import Changed
from unlearnx.curvature.gradients import grad_difference
from unlearnx.methods.base import Work, first_output
from unlearnx.methods.rounds import Train
from unlearnx.methods.training_method import TrainedMethod


@dataclass
class SalUn(TrainedMethod):
    """Train the salient weights on the retain set and on the forget set with random labels.

    Labels that do not count stay as they are; answers of yes and no (0 and 1 for single logits, or for each of several)
    become the other one; values of a regression are refused. A weight is salient if its gradient of the forget set's
    loss is among the largest in magnitude. In a correction,
    the corrected labels are used instead of random ones.

    Args:
        epochs: passes over all samples.
        lr: peak learning rate.
        ratio: fraction of the chosen parameters that are salient.

    Raises:
        ValueError: ``ratio`` is not in [0, 1], ``weight_decay`` is not 0, or the labels are not class indices.

    Source: Fan et al., "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency", ICLR 2024.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> outcome = SalUn(epochs=1, ratio=0.3)(nn.Linear(8, 3), Request.remove((x, y), range(6)))
        >>> round(outcome.info["salient_share"] * 27)  # of 27 parameters
        8
    """

    _nominal_epochs: ClassVar[int] = 3
    _reads_samples: ClassVar[bool] = True

    epochs: int | str = "auto"
    lr: float = 5e-4
    ratio: float = 0.5
    weight_decay: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(ratio=self.ratio)
        if self.weight_decay:
            raise ValueError(
                f"weight_decay is {self.weight_decay}, expected 0: it would change weights that are not salient"
            )

    def _trainer(self, work: Work, info: dict[str, Any]) -> Train:
        data = work.request.trained_target
        if work.request.corrected is None:
            data = self._relabelled(work, data, work.request.trained_forget_set)
        masks = self._salient(work)
        info["salient_share"] = sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())

        def train(epochs: int, rate: float) -> None:
            with _masked_gradients(work, masks):
                self._train(work, info, epochs, rate * self.lr, data=data)

        return train

    def _relabelled(self, work: Work, retain: Dataset[Any], forget: Dataset[Any]) -> Dataset[Any]:
        """Both sets, the second with other labels, the same ones in each epoch."""
        example = first_output(work, forget)
        retained = size(retain)

        def change(x: Nest, y: Nest, index: Tensor) -> Pair:
            forgets = (index >= retained).nonzero().flatten()
            if not len(forgets):
                return x, y
            return x, replaced(y, forgets, self._other_labels(example, index[forgets], take(y, forgets)))

        self._other_labels(example, torch.zeros(1, dtype=torch.int64), example[1])  # refuses before any training
        return Changed(ConcatDataset([retain, forget]), change)

    def _other_labels(self, example: tuple[Any, Nest], index: Tensor, labels: Nest) -> Tensor:
        """For each label that counts, a random class other than its own, or the other answer of yes and no.

        Args:
            example: what the model returns for a sample, and its labels, which tell what labels mean.
            index: numbers of some samples, on which alone the random classes depend.
            labels: theirs.
        """
        if not isinstance(labels, Tensor):
            raise ValueError(f"request: has labels of type {type(labels).__name__}, expected class indices to relabel")
        output, first = example
        ignored = SampleLoss(self.loss_fn).ignore_index
        axis = None if labels.is_floating_point() else class_axis(output, first)
        if axis is None:
            one_each = scores(output)[:1].expand(len(labels), *scores(output).shape[1:])
            if not is_binary(one_each, labels, ignored):
                raise ValueError(f"request: has labels of dtype {labels.dtype}, expected class indices to relabel")
            return (1 - labels).where(labels != ignored, labels)
        classes = scores(output).shape[axis]
        has_label = counted(labels, classes, ignored)
        own = labels.where(has_label, 0)
        if 0 <= ignored < classes:  # a class that stands for none is not drawn
            own, classes = own - (own > ignored).long(), classes - 1
        if classes < 2:
            raise ValueError(f"request: has {classes} class to choose from, expected at least two to relabel")
        shift = torch.empty(labels.shape, dtype=torch.int64)
        for row, i in zip(shift, index.tolist(), strict=True):
            row.random_(1, classes, generator=torch.Generator().manual_seed(hash((self.seed, i)) % 2**63))
        other = (own + shift.to(labels.device)) % classes
        if 0 <= ignored <= classes:
            other = other + (other >= ignored).long()
        return other.where(has_label, labels)

    def _salient(self, work: Work) -> dict[str, Tensor]:
        """For each parameter, a mask that is True where the weight is salient."""
        forget = work.request.forget_set
        work.gradient_evaluations += len(work.request.forget)
        with evaluating(work.model) as model, torch.enable_grad():
            gradient = grad_difference(model, self.loss_fn, forget, params=work.names, batch_size=work.pace.batch_size)
        magnitudes = torch.cat([gradient[name].abs().flatten() for name in work.names])
        is_salient = torch.zeros_like(magnitudes, dtype=torch.bool)
        is_salient[magnitudes.topk(round(self.ratio * len(magnitudes))).indices] = True
        parts = is_salient.split([gradient[name].numel() for name in work.names])
        return {name: part.view_as(gradient[name]) for name, part in zip(work.names, parts, strict=True)}


@contextmanager
def _masked_gradients(work: Work, masks: dict[str, Tensor]) -> Iterator[None]:
    """Within this context, gradients of the chosen parameters are set to zero where their masks are False."""
    params = dict(work.model.named_parameters())
    handles = [params[name].register_hook(mask.mul) for name, mask in masks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
