"""Repeats a step on tensors that stay at their addresses: as a CUDA graph on GPUs, by calls elsewhere."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WARM_UP_CALLS = 3  # calls before a capture, as in torch.cuda.make_graphed_callables


def can_capture(device: torch.device) -> bool:
    """Whether work on `device` can be captured: on GPUs without autocast, whose cache does not outlive a call."""
    return device.type == "cuda" and not torch.is_autocast_enabled(device.type)


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """On a GPU, use another stream in order with the current one: the default stream cannot be captured."""
    if device.type != "cuda":
        yield
        return
    outer, stream = torch.cuda.current_stream(device), _stream_of(device)
    stream.wait_stream(outer)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        outer.wait_stream(stream)


_streams = threading.local()


def _stream_of(device: torch.device) -> torch.cuda.Stream:
    """This thread's side stream of a GPU, always the same: libraries keep a workspace for every stream they meet."""
    index = torch.cuda.current_device() if device.index is None else device.index
    name = f"device {index}"
    if not hasattr(_streams, name):
        setattr(_streams, name, torch.cuda.Stream(index))
    return getattr(_streams, name)


class Replay:
    """Calls `step` repeatedly; on a GPU, after a few calls, by replaying a CUDA graph captured from one of them.

    A capture that fails may leave torch's allocator and random generators in a broken state, and a copy from the host
    would be captured silently, with the address of memory that is freed later. Both are therefore checked before: in
    the last call of the warm-up, waiting for the device and copying from the host raise an error. If step raises one,
    a warning says so, and step is called instead of captured from then on.

    Args:
        step: reads and writes tensors that stay at their addresses; where it raises, it must have changed none of them.
        device: of the tensors. On a GPU, make the calls within :func:`side_stream`, and record there the autograd
            graphs that step uses.

    Attributes:
        failed: whether step could not be captured.

    Source: "CUDA semantics: CUDA Graphs", documentation of PyTorch.
    """

    def __init__(self, step: Callable[[], object], device: torch.device):
        self._step = step
        self._may_capture = can_capture(device)
        self._calls = 0
        self.failed = False
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Call step once, or replay it."""
        self._calls += 1
        if self._graph is None and self._may_capture and not self.failed and self._calls >= WARM_UP_CALLS:
            try:
                if self._calls == WARM_UP_CALLS:
                    with _error_on_host_sync():
                        self._step()
                    return
                self._graph = _capture(self._step)
            except Exception as error:  # step runs the user's model, which may raise anything
                self.failed = True
                # Ending a capture that failed raises a second error.
                warnings.warn(f"runs without a CUDA graph, which is slower: {error.__context__ or error}", stacklevel=2)
        if self._graph is not None:
            self._graph.replay()
        else:
            self._step()


@contextmanager
def _error_on_host_sync() -> Iterator[None]:
    """Raise a RuntimeError where the host waits for the GPU or copies to it, as far as torch notices."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that this mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        with _ErrorOnHostCopies():
            yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class _ErrorOnHostCopies(TorchDispatchMode):
    """Raises at copies from the host, asynchronous ones included: a replay would read memory that is freed by then."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        copies = {torch.ops.aten._to_copy: 0, torch.ops.aten.copy_: 1}  # index of the source among the arguments
        if func.overloadpacket in copies:
            source = args[copies[func.overloadpacket]]
            if source.device.type == "cpu" and result.device.type != "cpu":
                raise RuntimeError(f"copies a tensor of shape {list(source.shape)} from the CPU")
        return result


def _capture(step: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A graph of what `step` launches on the current stream; the capture does not run it."""
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    try:
        # On the stream of the warm-up; other threads may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool, torch.cuda.current_stream(), capture_error_mode="thread_local"):
            step()
    except BaseException:
        _end_pool(pool)
        raise
    return graph


def _end_pool(pool: tuple[int, int]) -> None:
    """Let the allocator leave the pool of a capture that failed, which torch does for those that end in order."""
    device = torch.cuda.current_device()
    try:
        torch._C._cuda_endAllocateToPool(device, pool)
    except RuntimeError:  # this one did, and its graph gives the pool back
        return
    torch._C._cuda_releasePool(device, pool)
