"""RUM: the forget set is refined by how much each sample is memorised, and unlearned part by part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from unlearnx._data import left_of
from unlearnx.methods.base import Method
from unlearnx.methods.fine_tune import FineTune
from unlearnx.methods.pipeline import Pipeline
from unlearnx.methods.request import Request
from unlearnx.methods.salun import SalUn
from unlearnx.metrics.outputs import sample_losses


@dataclass
class RUM(Pipeline):
    """Unlearn what is little memorised first, and what is much memorised last, each part in a way of its own.

    The forget set is sorted by memorisation and cut into parts of equal size. A method of the sequence unlearns one
    part, while those that come later still count as what stays. The least memorised part is left as it is: a model that
    never saw it knows it from the others. That, and the methods by default, are what the source found best on CIFAR-10.

    Args:
        stages: the methods, of the less memorised parts first.
        leave_least: leave one further part, the least memorised one, as it is.
        scores: how much each sample of the forget set is memorised, (K,) in the order of ``request.forget``, such as
            the ``score`` of :func:`unlearnx.metrics.memorization_scores`. None takes the losses of the trained model in
            their place, as of little confidence in a label that was learned; Zhao et al., "Scalability of
            memorization-based machine unlearning", 2024, compare such proxies.

    Raises:
        ValueError: the request is a correction or has no retain set, the forget set has fewer samples than there are
            parts, `scores` are not finite or not one for each sample; and as for :class:`Pipeline`.

    Source: Zhao et al., "What makes unlearning hard and what to do about it", NeurIPS 2024, section 5, and its code:
    what comes later is retained meanwhile.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> outcome = RUM([FineTune(epochs=2), SalUn(epochs=2)])(nn.Linear(8, 3), Request.remove((x, y), range(9)))
        >>> [stage["forgets"] for stage in outcome.info["stages"]]
        [3, 3]
    """

    stages: Sequence[Method] = (FineTune(), SalUn())
    leave_least: bool = True
    scores: Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scores is not None and self.scores.dim() != 1:
            raise ValueError(f"scores: has shape {list(self.scores.shape)}, expected one number for each sample")
        if self.scores is not None and not self.scores.isfinite().all():
            raise ValueError("scores: has values that are NaN or infinite, expected finite scores")

    def _steps(self, model: nn.Module, request: Request) -> Iterable[tuple[Method, Request]]:
        if request.corrected is not None:
            raise ValueError("request: is a correction, expected samples to forget")
        if not request.has_retain_set:
            raise ValueError("request: has no retain set, expected one, with which the parts that come later are kept")
        n, parts = len(request.forget), len(self.stages) + self.leave_least
        if n < parts:
            raise ValueError(f"request: has {n} samples to forget, expected at least {parts}, one for each part")
        order = self._scores(model, request).sort(stable=True).indices
        cut = [request.forget[chosen].sort().values for chosen in order.tensor_split(parts)]
        first = parts - len(self.stages)
        return [
            (stage, _part(request, torch.cat(cut[:i]) if i else request.forget[:0], cut[i]))
            for i, stage in enumerate(self.stages, first)
        ]

    def _scores(self, model: nn.Module, request: Request) -> Tensor:
        if self.scores is None:
            stage = self.stages[0]
            return sample_losses(model, stage.loss_fn, request.forget_set, batch_size=stage.batch_size).cpu()
        if self.scores.shape != (len(request.forget),):
            expected = f"[{len(request.forget)}], one for each sample of the forget set"
            raise ValueError(f"scores: has shape {list(self.scores.shape)}, expected {expected}")
        return self.scores.cpu()


def _part(request: Request, gone: Tensor, part: Tensor) -> Request:
    """The request to forget a part of the forget set after another one."""
    kept = left_of(request.samples, gone)
    data = Subset(request.dataset, kept.tolist())
    augmented = None if request.augmented is None else Subset(request.augmented, kept.tolist())
    return Request(data, torch.searchsorted(kept, part), augmented=augmented, held_out=request.held_out)
