"""Shards and slices of SISA: which points train which constituent, and the training of one."""

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
from unlearnx.models.training import Training

FEWEST = 2  # points that a training takes: BatchNorm has no statistics of one

Factory = Callable[[], nn.Module]


def digests(x: Tensor, y: Tensor) -> list[bytes]:
    """16 bytes for each of N points that tell it from others with another content."""
    features, labels = (t.detach().cpu().reshape(len(t), -1).contiguous().view(torch.uint8).numpy() for t in (x, y))
    return [
        hashlib.blake2b(point.tobytes() + label.tobytes(), digest_size=16).digest()
        for point, label in zip(features, labels, strict=True)
    ]


@dataclass(frozen=True)
class Shard:
    """What trains one constituent.

    Attributes:
        indices: of its points, slice after slice.
        stops: how many of them there are up to the end of each slice.
        keys: name of the state after each slice: a hash of everything that it depends on.
    """

    indices: list[int]
    stops: list[int]
    keys: list[str]

    @property
    def votes(self) -> bool:
        """Whether it has points enough to train a constituent."""
        return self.stops[-1] >= FEWEST


def divide(
    points: Sequence[bytes], retained: Iterable[int], shards: int, slices: int, *, seed: int, recipe: str
) -> list[Shard]:
    """Deal the retained points out to shards and slices.

    Where a point goes follows from the seed and the hash of its content, the n-th copy of it being a point of its own,
    and those of a slice are in the order of their hashes. Nothing depends on the other points or on the order of the
    data: what is left after a removal is divided as if the removed points had never been.
    """
    copies: Counter[bytes] = Counter()
    cells: list[list[tuple[bytes, int]]] = [[] for _ in range(shards * slices)]
    key = hashlib.blake2b(str(seed).encode()).digest()
    for index in retained:
        content = points[index]
        place = hashlib.blake2b(content + copies[content].to_bytes(8, "big"), digest_size=8, key=key).digest()
        copies[content] += 1
        cells[int.from_bytes(place, "big") % len(cells)].append((content, index))
    return [_shard(s, cells[s * slices : (s + 1) * slices], recipe) for s in range(shards)]


def _shard(number: int, cells: list[list[tuple[bytes, int]]], recipe: str) -> Shard:
    indices: list[int] = []
    keys = []
    seen = hashlib.blake2b(f"{recipe}, shard {number}".encode(), digest_size=16)
    for cell in cells:
        cell.sort()
        indices += [index for _, index in cell]
        seen.update(len(cell).to_bytes(8, "big") + b"".join(content for content, _ in cell))
        keys.append(seen.hexdigest())
    return Shard(indices, list(accumulate(map(len, cells))), keys)


def epochs_per_slice(epochs: int, slices: int) -> list[int]:
    """Epochs of each slice such that all together visit as many samples as `epochs` of the whole shard.

    Each has ``2 / (slices + 1) * epochs`` on average, and at least one.

    Source: Bourtoule et al., with the rounding of the authors' code.
    """
    starts = [2 * epochs * r // (slices + 1) for r in range(slices + 1)]
    return [max(1, stop - start) for start, stop in pairwise(starts)]


def derived_seed(*parts: int | str) -> int:
    """A seed for every combination of parts."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "big")


def build(factory: Factory, seed: int, device: torch.device | str | None) -> nn.Module:
    """The factory's model with the random parameters of that seed; no `device` leaves it where it is made."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = factory()
    if not isinstance(model, nn.Module) or next(model.parameters(), None) is None:
        raise ValueError(f"factory: gave {type(model).__name__}, expected a module with parameters")
    return model.to(device)


def load(model: nn.Module, file: Path) -> None:
    """Give `model` the state in `file`."""
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))


@dataclass(frozen=True)
class Job:
    """Training of one constituent from a slice on: all that a worker process needs to know.

    Attributes:
        factory: builds an untrained model.
        training: recipe; its epochs are those of the whole shard.
        device: to train on.
        seed: of SISA.
        shard: number of the shard.
        first: the slice to begin with.
        files: checkpoint of every slice; those before `first` exist.
        stops: how many points there are up to the end of each slice.
        x: features of the shard's points, (points, ...).
        y: labels, (points, ...).
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
        """What it trains, as (shard, slice)."""
        return [(self.shard, r) for r in range(self.first, len(self.files))]

    def run(self) -> None:
        """Train and save slice after slice.

        Each begins with what the checkpoint of the one before holds, and with a new optimizer: a training that is
        taken up again anywhere takes the very same steps.
        """
        epochs = epochs_per_slice(self.training.epochs, len(self.files))
        for r in range(self.first, len(self.files)):
            model = build(self.factory, derived_seed(self.seed, self.shard, "start"), self.device)
            if r > 0:
                load(model, self.files[r - 1])
            points = self.stops[r]
            if points >= FEWEST:
                training = replace(
                    self.training,
                    epochs=epochs[r],
                    batch_size=_batch_size(points, self.training.batch_size),
                    seed=derived_seed(self.seed, self.shard, r),
                    progress=False,
                )
                training.run(model.train(), (self.x[:points], self.y[:points]))
            state = model.cpu().state_dict()
            write_atomically(self.files[r], lambda file, state=state: torch.save(state, file))  # type: ignore[misc]


def _batch_size(points: int, wanted: int) -> int:
    """The next size that leaves no single sample for the last batch, where BatchNorm would fail."""
    while wanted > 1 and points % wanted == 1:
        wanted += 1
    return wanted


def run_all(jobs: Sequence[Job], workers: int, finished: Callable[[Job], None]) -> None:
    """Run the jobs, in processes of their own where there are several of both.

    The threads are shared out among `workers`, however many are at work: sums of floats depend on their number.
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

    def end_with_parent() -> None:  # an orphan would write checkpoints that a later removal has made stale
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
