"""Loss functions of any reduction as sums of per-sample losses, which the curvature engines need."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

PROBE_SAMPLES = 64  # most samples of the first batch that are used to find the reduction of a scalar loss
REDUCTION_TOLERANCE = 1e-3  # relative, to tell a mean or sum in single precision from another scalar

Loss = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def named(describe: Callable[[], str]) -> Iterator[None]:
    """What a function of the user's raises comes as a ValueError that starts with what `describe` says.

    Memory that is not there is no fault of an argument.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{describe()}: it raised {type(error).__name__}: {said[:300]}") from error


class SampleLoss:
    """Per-sample losses of a `loss_fn(output, y)` that returns losses per sample, their mean or their sum.

    Whether a scalar is a mean or a sum is found by evaluating samples of the first batch together and one by one, so
    that any callable will do. The function gets copies of the labels.

    Raises:
        TypeError: the loss is no function.
    """

    def __init__(self, loss_fn: Loss):
        if not callable(loss_fn):
            raise TypeError(f"loss_fn is {loss_fn!r}, expected a function loss_fn(output, y)")
        self.loss_fn = loss_fn
        self._reduction: str | None = None

    def total(self, output: Tensor, y: Tensor) -> Tensor:
        """Sum of the per-sample losses of a batch, a 0-d tensor.

        Raises:
            ValueError: the loss is neither per sample nor the mean or sum of such losses.
        """
        output = _wide(output, len(y))
        value = self.each_or_all(output, y)
        if value.dim() > 0:
            return value.sum()
        if output.shape[0] == 1:
            return value
        if self._reduction is None:
            self._reduction = self._recognise(output.detach()[:PROBE_SAMPLES], y[:PROBE_SAMPLES])
        return value if self._reduction == "sum" else value * output.shape[0]

    def each(self, output: Tensor, y: Tensor) -> Tensor:
        """The loss of every sample of a batch, (N,); a scalar loss function is called for one sample at a time.

        Raises:
            ValueError: the loss is neither per sample nor the mean or sum of such losses.
        """
        output = _wide(output, len(y))
        value = self.each_or_all(output, y)
        if value.dim() > 0:
            return value.flatten(1).sum(1) if value.dim() > 1 else value
        return torch.stack([self._call(output[i : i + 1], y[i : i + 1]) for i in range(len(output))])

    def each_or_all(self, output: Tensor, y: Tensor) -> Tensor:
        """What the loss function returns, which is a scalar or a row for each sample.

        Raises:
            ValueError: it returns something else, or does not take the labels with these outputs.
        """
        value = self._call(output, y)
        if not isinstance(value, Tensor):
            raise ValueError(f"loss_fn: returned {type(value).__name__}, expected a tensor")
        if value.dim() > 0 and value.shape[0] != output.shape[0]:
            raise ValueError(
                f"loss_fn: returned shape {list(value.shape)} for {output.shape[0]} samples, "
                "expected one loss per sample, or their mean or sum"
            )
        return value

    def _call(self, output: Tensor, y: Tensor) -> Tensor:
        def misfit() -> str:
            return (
                f"data: expected labels that loss_fn takes, got y of {y.dtype} and shape {list(y.shape)} with outputs "
                f"of {output.dtype} and shape {list(output.shape)}"
            )

        with named(misfit):
            return self.loss_fn(output, y.clone())

    def _recognise(self, output: Tensor, y: Tensor) -> str | None:
        """The reduction, "mean" or "sum"; None where losses are not finite, so that it cannot be found."""
        with torch.no_grad():
            noise = torch.Generator().manual_seed(0)
            for _ in range(2):  # losses of exactly zero tell nothing: look again at other outputs
                single = [self._call(output[i : i + 1].clone(), y[i : i + 1]).item() for i in range(len(output))]
                together, total = self._call(output.clone(), y).item(), sum(single)
                if total != 0:
                    break
                output = output + torch.randn(output.shape, generator=noise).to(output)
        if not math.isfinite(total):
            return None
        tolerance = REDUCTION_TOLERANCE * sum(map(abs, single))
        if abs(together * len(single) - total) <= tolerance:
            return "mean"
        if abs(together - total) <= tolerance:
            return "sum"
        raise ValueError(
            f"loss_fn: returned {together:.6g} for {len(single)} samples whose losses one by one sum to {total:.6g}, "
            'expected their mean or sum; return one loss per sample (reduction="none")'
        )


def _wide(output: Tensor, samples: int) -> Tensor:
    """Outputs as autocast hands them to a loss: means of losses need more digits than half precision has.

    Those of a single sample may come without their first dimension.
    """
    if samples == 1 and output.shape[:1] != (1,):
        output = output.unsqueeze(0)
    return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output
