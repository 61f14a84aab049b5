"""How a model goes through data fastest on this machine: the dtype of its layers, and the samples of a pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from unlearnx._batches import call, count, moved, tensors
from unlearnx._checks import model_device
from unlearnx._data import Data, size
from unlearnx._losses import Loss, SampleLoss
from unlearnx._memory_order import ImageOrder
from unlearnx._modes import evaluating
from unlearnx._precision import autocast, fast_dtype
from unlearnx._random import undisturbed
from unlearnx._sources import Samples

AUTO = "auto"
WORTH = 10**12  # floating-point operations of a pass over the data, some seconds, below which nothing is tried
COUNTED, TRIED, TRIALS = 3, 32, 3  # samples whose operations are counted, that are timed, and how often
FASTER = 1.2  # factor below which a faster dtype is not worth its rounding
SAME_LOSS = 0.01  # most difference of the mean loss, relative to it or in its own unit, whichever is larger
KEPT_WARM = 16 << 20  # bytes that the largest activation of a pass may take, larger ones come from the system anew
FEWEST = 8  # samples in a pass


@dataclass(frozen=True)
class Pace:
    """How a model goes through data.

    Attributes:
        autocast: dtype of autocast; None for the model's own dtype.
        batch_size: samples in a pass without gradients, where results do not depend on it.
        channels_last: whether images are in the memory order in which their channels are next to each other.
    """

    autocast: torch.dtype | None
    batch_size: int
    channels_last: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """The same as arguments of measures."""
        return {"batch_size": self.batch_size, "autocast": self.autocast}

    def described(self, head: Pace) -> dict[str, Any]:
        """The same for an outcome, in plain values, with that of the head where it is another."""
        name = None if self.autocast is None else str(self.autocast).removeprefix("torch.")
        order = "channels_last" if self.channels_last else "contiguous"
        found: dict[str, Any] = {"autocast": name, "batch_size": self.batch_size, "memory_order": order}
        return found if head == self else {**found, "head": head.described(head)}


def find_pace(
    model: nn.Module, loss_fn: Loss, data: Data, batch_size: int, wanted: torch.dtype | str | None = AUTO
) -> Pace:
    """How to go through the data with the model as it is.

    The half dtype that the device is fast in is taken for a model in float32 where a trial on 32 samples finds it
    faster by a fifth, and the mean loss the same to a hundredth. Passes over little data are not tried: they keep the
    model's own dtype and the batch size given, so that their results are those of any other machine.

    Args:
        batch_size: most samples in a pass. On the CPU as few are taken as keep the largest activation at 16 MiB, from
            where on memory is handed out anew for each pass, page by page.
        wanted: the dtype, where it is given: see :class:`unlearnx.methods.Method`.
    """
    given = None if isinstance(wanted, str) else wanted
    n, samples, device = size(data), Samples(data), model_device(model)
    with evaluating(model) as lent, undisturbed(device):
        order = ImageOrder(lent)
        x, y = (moved(nest, device) for nest in samples.read(slice(0, min(n, COUNTED))))
        flops, largest = _weighed(lambda: call(lent, order(x)), count(y))
        if flops * n < WORTH:
            return Pace(given, batch_size, order.taken(x))
        if device.type == "cpu" and largest:
            batch_size = min(batch_size, max(FEWEST, KEPT_WARM // largest))
        fast = fast_dtype(device) if isinstance(wanted, str) and _is_single(lent) else None
        if fast is not None:
            x, y = (moved(nest, device) for nest in samples.read(slice(0, min(n, TRIED, batch_size))))
            loss = SampleLoss(loss_fn)

            def run(dtype: torch.dtype | None) -> float:
                with autocast(device, dtype):
                    output = call(lent, order(x))
                return float(loss.total(output, y)) / count(y)

            given = fast if _pays(lambda: run(None), lambda: run(fast)) else None
        return Pace(given, batch_size, order.taken(x))


def _is_single(model: nn.Module) -> bool:
    """Whether its parameters are float32: others were given their precision on purpose."""
    return all(p.dtype == torch.float32 for p in model.parameters() if p.is_floating_point())


def _pays(slow: Callable[[], float], fast: Callable[[], float]) -> bool:
    """Whether `fast` is faster than `slow` and returns the same loss; the runs take turns."""
    usual, quick = slow(), fast()
    if not abs(quick - usual) <= SAME_LOSS * max(1.0, abs(usual)):
        return False
    times = [(_seconds(slow), _seconds(fast)) for _ in range(TRIALS)]
    return min(s for s, _ in times) >= FASTER * min(f for _, f in times)


def _seconds(run: Callable[[], float]) -> float:
    start = time.perf_counter()
    run()  # returns a number, so that the device has finished
    return time.perf_counter() - start


def _weighed(run: Callable[[], Any], samples: int) -> tuple[int, int]:
    """Floating-point operations of a run for one sample, and the bytes of the largest tensor that it makes of one."""
    with _Scale(samples) as scale:
        run()
    return scale.flops // samples, scale.largest // samples


class _Scale(TorchDispatchMode):
    """Adds up floating-point operations, and notes the most bytes of a tensor with a row for each sample.

    FlopCounterMode does the former too, and imports torch's compiler for it, which takes seconds.
    """

    def __init__(self, samples: int):
        super().__init__()
        self.samples, self.flops, self.largest = samples, 0, 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch imports its compiler to keep it off this class

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        of_function = flop_registry.get(func._overloadpacket)
        if of_function is not None:
            self.flops += of_function(*args, **(kwargs or {}), out_val=output)
        for t in tensors(output):
            if isinstance(t, Tensor) and t.shape[:1] == (self.samples,):
                self.largest = max(self.largest, t.nbytes)
        return output
