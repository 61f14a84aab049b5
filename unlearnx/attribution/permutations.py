"""Shapley values by sampling permutations: in processes, to a tolerance, and from where an earlier run was cut off."""

from __future__ import annotations

import json
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from unlearnx._checks import check_at_least_one, check_at_least_zero
from unlearnx._files import write_atomically
from unlearnx._progress import progress_bar

Game = Callable[[Tensor], Tensor]
"""From an order of the points, int64 (n,), to what each of them adds in that order, float64 (n,) by index of point."""

BELIEVED = 100  # permutations before standard errors are taken at their word: rare gains may not have shown up
SAVE_SECONDS = 5.0


@dataclass(frozen=True)
class ShapleyResult:
    """Estimated Shapley values; higher = worth more.

    Attributes:
        values: mean contribution of every point, float64 (N,).
        standard_errors: of these means, float64 (N,).
        permutations: how many were sampled.
    """

    values: Tensor
    standard_errors: Tensor
    permutations: int

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds, (N,) each, that hold each exact value with probability `level`, by normal theory.

        Raises:
            ValueError: the level is not in (0, 1).
        """
        if not 0 < level < 1:
            raise ValueError(f"level is {level!r}, expected a number between 0 and 1")
        reach = NormalDist().inv_cdf((1 + level) / 2) * self.standard_errors
        return self.values - reach, self.values + reach


@dataclass
class _Moments:
    """Running mean and squared deviations of contributions (Welford), the same sums whoever worked them out."""

    mean: np.ndarray
    squares: np.ndarray
    count: int = 0

    def add(self, contributions: np.ndarray) -> None:
        self.count += 1
        away = contributions - self.mean
        self.mean += away / self.count
        self.squares += away * (contributions - self.mean)

    def standard_errors(self) -> np.ndarray:
        return np.sqrt(self.squares / (self.count - 1) / self.count) if self.count > 1 else self.mean * math.nan

    def result(self) -> ShapleyResult:
        return ShapleyResult(torch.from_numpy(self.mean), torch.from_numpy(self.standard_errors()), self.count)


@dataclass(frozen=True)
class Sampling:
    """How permutations are sampled; results depend on the first three alone.

    Attributes:
        permutations: how many at most.
        tolerance: stop once no standard error is above it.
        seed: permutation p comes from (seed, p) alone, as do torch's random numbers while it is played.
        workers: processes.
        checkpoint: file to save to every few seconds and to resume from.
        progress: show a progress bar (needs ``unlearnx[experiments]``).
    """

    permutations: int
    tolerance: float
    seed: int
    workers: int
    checkpoint: Path | None
    progress: bool

    def __post_init__(self) -> None:
        check_at_least_one(permutations=self.permutations, workers=self.workers)
        check_at_least_zero(tolerance=self.tolerance, seed=self.seed)

    def run(self, game: Game, n: int, key: str) -> ShapleyResult:
        """Play the game of `n` points.

        Args:
            game: what every permutation is handed to; it returns finite numbers.
            n: points.
            key: what else the contributions depend on; a checkpoint with another key is refused.

        Raises:
            ValueError: the checkpoint belongs to another run.
        """
        key = f"{key}, {n} points, seed {self.seed}"
        moments = self._load(key, n)
        saved = time.monotonic()
        try:
            with (
                progress_bar("Shapley values", self.permutations, self.progress) as advance,
                _players(game, n, self.seed, self.workers) as play,
            ):
                advance(moments.count)
                if not self._done(moments):
                    for contributions in play(range(moments.count, self.permutations)):
                        moments.add(contributions)
                        advance(1)
                        if self._done(moments):
                            break
                        if time.monotonic() - saved > SAVE_SECONDS:
                            self._save(key, moments)
                            saved = time.monotonic()
        finally:
            self._save(key, moments)
        return moments.result()

    def _done(self, moments: _Moments) -> bool:
        if moments.count >= self.permutations:
            return True
        return moments.count >= BELIEVED and bool(moments.standard_errors().max() <= self.tolerance)

    def _save(self, key: str, moments: _Moments) -> None:
        if self.checkpoint is not None:
            arrays = {"key": np.array(json.dumps(key)), **vars(moments)}
            write_atomically(self.checkpoint, lambda file: np.savez(file, **arrays))

    def _load(self, key: str, n: int) -> _Moments:
        if self.checkpoint is None or not self.checkpoint.exists():
            return _Moments(np.zeros(n), np.zeros(n))
        with np.load(self.checkpoint) as arrays:
            found = json.loads(str(arrays["key"]))
            if found != key:
                raise ValueError(f"checkpoint: {self.checkpoint} belongs to another run ({found}); remove it")
            return _Moments(arrays["mean"], arrays["squares"], int(arrays["count"]))


def seeded(seed: int, number: int) -> int:
    """A seed for one of many independent streams of random numbers."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Torch on one thread and with random numbers of its own, on the CPU: as in any other process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class _Player:
    """Plays permutations by their numbers."""

    game: Game
    n: int
    seed: int

    def __call__(self, number: int) -> np.ndarray:
        own = seeded(self.seed, number)
        order = torch.randperm(self.n, generator=torch.Generator().manual_seed(own))
        with reproducible(own):
            return self.game(order).numpy()


_player: _Player | None = None  # of a worker process


def _receive(player: _Player) -> None:
    global _player
    _player = player


def _play(number: int) -> np.ndarray:
    assert _player is not None
    return _player(number)


@contextmanager
def _players(game: Game, n: int, seed: int, workers: int) -> Iterator[Callable[[Iterable[int]], Iterator[np.ndarray]]]:
    """A function from numbers of permutations to their contributions, in order."""
    player = _Player(game, n, seed)
    if workers == 1:
        yield lambda numbers: map(player, numbers)
        return
    # Forked workers are handed anything, closures too, and run torch on one thread, as those of a DataLoader do; but
    # they cannot use a GPU that is in use already.
    fork = sys.platform == "linux" and not torch.cuda.is_initialized()
    context = multiprocessing.get_context("fork" if fork else "spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_receive, initargs=(player,))
    try:
        yield lambda numbers: pool.map(_play, numbers)
    finally:
        pool.shutdown(cancel_futures=True)
