"""Work repeated on memory that stays in its place: replays of a CUDA graph on GPUs, calls elsewhere."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WARM_UP = 3  # calls before a capture, as in torch.cuda.make_graphed_callables


def can_capture(device: torch.device) -> bool:
    """Whether work on `device` may be captured: on GPUs, but for autocast, whose cache lives shorter than a graph."""
    return device.type == "cuda" and not torch.is_autocast_enabled(device.type)


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """On a GPU a stream other than the default one, as a capture needs, between what comes before and after."""
    if device.type != "cuda":
        yield
        return
    outer, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    stream.wait_stream(outer)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        outer.wait_stream(stream)


class Replay:
    """Calls `step` again and again; on a GPU, after some calls, as replays of what it launched in one of them.

    A failed capture may leave torch's allocator and random numbers in disorder, and copies from the host would be
    captured without a word. Both are therefore looked for beforehand: the last call of the warm-up is a rehearsal, in
    which torch refuses to wait for the device. Where step cannot be captured it is called as before, after a warning.

    Args:
        step: reads and writes tensors that stay where they are; where it raises, it has changed none of them.
        device: of the tensors. On a GPU calls are to be made within :func:`own_stream`, and autograd graphs that step
            uses to be recorded there.

    Attributes:
        failed: whether step could not be captured.

    Source: "CUDA semantics: CUDA Graphs", documentation of PyTorch.
    """

    def __init__(self, step: Callable[[], object], device: torch.device):
        self._step = step
        self._captures = can_capture(device)
        self._calls = 0
        self.failed = False
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Call step once, or replay it."""
        self._calls += 1
        if self._graph is None and self._captures and not self.failed and self._calls >= WARM_UP:
            try:
                if self._calls == WARM_UP:
                    with _refusing_to_wait():
                        self._step()
                    return
                self._graph = _captured(self._step)
            except Exception as error:  # this runs the user's model, which may raise anything
                self.failed = True
                reason = error.__context__ or error  # a capture that is cut short raises once more where it ends
                warnings.warn(f"not captured in a CUDA graph, and slower for it: {reason}", stacklevel=2)
        if self._graph is not None:
            self._graph.replay()
        else:
            self._step()


@contextmanager
def _refusing_to_wait() -> Iterator[None]:
    """What makes the host wait for a GPU, or copies from it, raises a RuntimeError, as far as torch knows of it."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls itself a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        with _NoCopies():
            yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class _NoCopies(TorchDispatchMode):
    """Copies from the host raise, those that are not waited for too: a replay would read memory that is another's."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        copies = {torch.ops.aten._to_copy: 0, torch.ops.aten.copy_: 1}  # where the source is
        if func.overloadpacket in copies:
            source = args[copies[func.overloadpacket]]
            if source.device.type == "cpu" and result.device.type != "cpu":
                raise RuntimeError(f"copies a tensor of shape {list(source.shape)} from the CPU")
        return result


def _captured(step: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """What `step` launches on the current stream; none of it is run."""
    graph = torch.cuda.CUDAGraph()
    # The stream is the one of the warm-up; what other threads do meanwhile is allowed.
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
        step()
    return graph
