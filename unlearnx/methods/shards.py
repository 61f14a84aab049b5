"""Shards and slices of SISA: the assignment of samples to them, and the training of one shard's model.

The model of a shard is called a constituent (of the ensemble), as in the paper.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from unlearnx._files import write_atomically
from unlearnx._models import check_has_values
from unlearnx._random import forked_random
from unlearnx.methods.untrained import Factory, made_by
from unlearnx.models.training import Training

MIN_TRAINING_SAMPLES = 2  # BatchNorm cannot be trained on a single sample


def digests(x: Tensor, y: Tensor) -> list[bytes]:
    """A 16-byte hash of the content of each of N samples."""
    features, labels = (t.detach().cpu().reshape(len(t), -1).contiguous().view(torch.uint8).numpy() for t in (x, y))
    return [
        hashlib.blake2b(sample.tobytes() + label.tobytes(), digest_size=16).digest()
        for sample, label in zip(features, labels, strict=True)
    ]


@dataclass(frozen=True)
class Shard:
    """The samples of one constituent.

    Attributes:
        indices: indices of the samples, in the order of the slices.
        stops: number of samples up to the end of each slice.
        keys: key of the checkpoint after each slice: a hash of everything that it depends on.
    """

    indices: list[int]
    stops: list[int]
    keys: list[str]

    @property
    def can_train(self) -> bool:
        """Whether it has enough samples to train a constituent; if not, the ensemble leaves it out."""
        return self.stops[-1] >= MIN_TRAINING_SAMPLES


def divide(
    samples: Sequence[bytes], retained: Iterable[int], shards: int, slices: int, *, seed: int, recipe: str
) -> list[Shard]:
    """Assign the retained samples to shards and slices.

    The slice of a sample depends only on the seed and on a hash of its content (and, for duplicates, on how many copies
    came before it). Samples of a slice are ordered by their hashes. The assignment of a sample therefore does not
    depend on the other samples or on the order of the data, and after a removal it is the same as if the removed
    samples had never been there.
    """
    copies: Counter[bytes] = Counter()
    all_slices: list[list[tuple[bytes, int]]] = [[] for _ in range(shards * slices)]
    key = hashlib.blake2b(str(seed).encode()).digest()
    for index in retained:
        content = samples[index]
        hashed = hashlib.blake2b(content + copies[content].to_bytes(8, "big"), digest_size=8, key=key).digest()
        copies[content] += 1
        all_slices[int.from_bytes(hashed, "big") % len(all_slices)].append((content, index))
    return [_shard(s, all_slices[s * slices : (s + 1) * slices], recipe) for s in range(shards)]


def _shard(number: int, slices: list[list[tuple[bytes, int]]], recipe: str) -> Shard:
    indices: list[int] = []
    keys = []
    seen = hashlib.blake2b(f"{recipe}, shard {number}".encode(), digest_size=16)
    for slice_ in slices:
        slice_.sort()
        indices += [index for _, index in slice_]
        seen.update(len(slice_).to_bytes(8, "big") + b"".join(content for content, _ in slice_))
        keys.append(seen.hexdigest())
    return Shard(indices, list(accumulate(map(len, slices))), keys)


def epochs_per_slice(epochs: int, slices: int) -> list[int]:
    """Epochs of each slice, so that in total as many samples are visited as in `epochs` of the whole shard.

    A slice has ``2 / (slices + 1) * epochs`` on average, and at least one.

    Source: Bourtoule et al., with the rounding of the authors' code.
    """
    starts = [2 * epochs * r // (slices + 1) for r in range(slices + 1)]
    return [max(1, stop - start) for start, stop in pairwise(starts)]


def derived_seed(*parts: int | str) -> int:
    """A seed that depends on all parts."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "big")


def build(factory: Factory, seed: int, device: torch.device | str | None) -> nn.Module:
    """A model of the factory, initialised with `seed` and moved to `device` (None: not moved)."""
    with forked_random(device, seed=seed):
        model = made_by(factory)
    if not isinstance(model, nn.Module) or next(model.parameters(), None) is None:
        raise ValueError(f"factory: returned {type(model).__name__}, expected a module with parameters")
    check_has_values("factory", model)
    return model.to(device)


def load(model: nn.Module, file: Path) -> None:
    """Load the state dict in `file` into `model`."""
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))


@dataclass(frozen=True)
class Job:
    """The training of one constituent, from some slice on; everything that a worker process needs for it.

    Attributes:
        factory: builds an untrained model.
        training: training settings; its epochs are those of the whole shard.
        device: device to train on.
        seed: seed of SISA.
        shard: index of the shard.
        first: index of the slice to begin with.
        files: checkpoint of every slice; those before `first` exist.
        stops: number of samples up to the end of each slice.
        x: inputs of the shard's samples, (N, ...).
        y: labels, (N, ...).
    """

    factory: Factory
    training: Training
    device: torch.device | str | None
    seed: int
    shard: int
    first: int
    files: list[Path]
    stops: list[int]
    x: Tensor
    y: Tensor

    @property
    def slices(self) -> list[tuple[int, int]]:
        """The slices that it trains, as (shard, slice)."""
        return [(self.shard, r) for r in range(self.first, len(self.files))]

    def run(self) -> None:
        """Train slice after slice and save a checkpoint after each.

        Every slice starts from the checkpoint of the previous one with a new optimizer. Training that is resumed at
        any slice therefore takes exactly the same steps as training without interruption.
        """
        epochs = epochs_per_slice(self.training.epochs, len(self.files))
        for r in range(self.first, len(self.files)):
            model = build(self.factory, derived_seed(self.seed, self.shard, "start"), self.device)
            if r > 0:
                load(model, self.files[r - 1])
            n = self.stops[r]
            if n >= MIN_TRAINING_SAMPLES:
                training = replace(
                    self.training,
                    epochs=epochs[r],
                    batch_size=_batch_size(n, self.training.batch_size),
                    seed=derived_seed(self.seed, self.shard, r),
                    progress=False,
                )
                training.run(model.train(), (self.x[:n], self.y[:n]))
            state = model.cpu().state_dict()
            write_atomically(self.files[r], lambda file, state=state: torch.save(state, file))  # type: ignore[misc]


def _batch_size(samples: int, wanted: int) -> int:
    """`wanted`, or the next larger size whose last batch is not a single sample, with which BatchNorm would fail."""
    while wanted > 1 and samples % wanted == 1:
        wanted += 1
    return wanted


def run_all(jobs: Sequence[Job], workers: int, finished: Callable[[Job], None]) -> None:
    """Run the jobs, in separate processes if there are several jobs and workers.

    Each job uses the same number of threads, the present number divided by `workers`, even if fewer processes run: the
    rounding of sums depends on the number of threads.
    """
    threads = max(1, torch.get_num_threads() // workers)
    if min(workers, len(jobs)) <= 1:
        with _threads(threads):
            for job in jobs:
                job.run()
                finished(job)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), context, _start_worker, (threads,)) as pool:
        running = {pool.submit(job.run): job for job in jobs}
        try:
            for future in as_completed(running):
                future.result()
                finished(running[future])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _start_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:  # without its parent, a worker would write checkpoints that may be outdated
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
