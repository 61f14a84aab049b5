"""Shapley values by sampling permutations: in several processes, up to a tolerance, resumable from a checkpoint."""

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
from unlearnx._random import forked_random

Game = Callable[[Tensor], Tensor]
"""Maps a permutation of the samples, int64 (n,), to the contribution of each sample in it, float64 (n,) by sample."""

# Permutations before a run may stop for its tolerance: with fewer, standard errors can be too small, because rare large
# contributions may not have occurred yet.
MIN_PERMUTATIONS_FOR_TOLERANCE = 100
CHECKPOINT_EVERY_SECONDS = 5.0


@dataclass(frozen=True)
class ShapleyResult:
    """Estimated Shapley values; higher = more valuable.

    Attributes:
        values: mean contribution of each training sample, float64 (N,).
        standard_errors: standard errors of these means, float64 (N,).
        permutations: number of sampled permutations.

    Example:
        >>> result = tmc_shapley(lambda s: s, len, n_points=3, permutations=5)  # every sample adds 1
        >>> low, high = result.interval(0.95)
        >>> result.permutations, result.values
        (5, tensor([1., 1., 1.], dtype=torch.float64))
    """

    values: Tensor
    standard_errors: Tensor
    permutations: int

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Confidence interval for each value, as lower and upper bounds (N,), from the normal approximation.

        Args:
            level: confidence level of each interval.

        Raises:
            ValueError: the level is not in (0, 1).
        """
        if not 0 < level < 1:
            raise ValueError(f"level is {level!r}, expected a number between 0 and 1")
        half_width = NormalDist().inv_cdf((1 + level) / 2) * self.standard_errors
        return self.values - half_width, self.values + half_width


@dataclass
class _Moments:
    """Running mean and sum of squared deviations of the contributions, by Welford's algorithm."""

    mean: np.ndarray
    squares: np.ndarray
    count: int = 0

    def add(self, contributions: np.ndarray) -> None:
        self.count += 1
        deviation = contributions - self.mean
        self.mean += deviation / self.count
        self.squares += deviation * (contributions - self.mean)

    def standard_errors(self) -> np.ndarray:
        return np.sqrt(self.squares / (self.count - 1) / self.count) if self.count > 1 else self.mean * math.nan

    def result(self) -> ShapleyResult:
        return ShapleyResult(torch.from_numpy(self.mean), torch.from_numpy(self.standard_errors()), self.count)


@dataclass(frozen=True)
class Sampling:
    """How permutations are sampled. Results depend on `permutations`, `tolerance` and `seed` only.

    Attributes:
        permutations: maximal number.
        tolerance: stop when no standard error is above it.
        seed: permutation p, and torch's random numbers while it is evaluated, depend on (seed, p) only.
        workers: number of processes.
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
        """Sample permutations of `n` samples and average the contributions that `game` returns for them.

        Args:
            game: see :data:`Game`; it returns finite numbers.
            n: number of samples.
            key: describes everything else that the contributions depend on; a checkpoint with another key is refused.

        Raises:
            ValueError: the checkpoint belongs to another run.
        """
        key = f"{key}, {n} samples, seed {self.seed}"
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
                        if time.monotonic() - saved > CHECKPOINT_EVERY_SECONDS:
                            self._save(key, moments)
                            saved = time.monotonic()
        finally:
            self._save(key, moments)
        return moments.result()

    def _done(self, moments: _Moments) -> bool:
        if moments.count >= self.permutations:
            return True
        return moments.count >= MIN_PERMUTATIONS_FOR_TOLERANCE and bool(
            moments.standard_errors().max() <= self.tolerance
        )

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


def stream_seed(seed: int, number: int) -> int:
    """A seed for stream `number` of many independent streams of random numbers."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Torch with one thread and freshly seeded random numbers, so that results are the same in every process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with forked_random(seed=seed):
            yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class _Player:
    """Evaluates the game on permutation number p."""

    game: Game
    n: int
    seed: int

    def __call__(self, number: int) -> np.ndarray:
        seed = stream_seed(self.seed, number)
        order = torch.randperm(self.n, generator=torch.Generator().manual_seed(seed))
        with reproducible(seed):
            return self.game(order).numpy()


_player: _Player | None = None  # set in worker processes only


def _set_player(player: _Player) -> None:
    global _player
    _player = player


def _play(number: int) -> np.ndarray:
    assert _player is not None
    return _player(number)


@contextmanager
def _players(game: Game, n: int, seed: int, workers: int) -> Iterator[Callable[[Iterable[int]], Iterator[np.ndarray]]]:
    """A function that maps numbers of permutations to the contributions in these permutations, in order."""
    player = _Player(game, n, seed)
    if workers == 1:
        yield lambda numbers: map(player, numbers)
        return
    # Forked workers inherit the game, which may hold closures, that cannot be pickled. But they cannot use CUDA if this
    # process has initialised it.
    fork = sys.platform == "linux" and not torch.cuda.is_initialized()
    context = multiprocessing.get_context("fork" if fork else "spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_set_player, initargs=(player,))
    try:
        yield lambda numbers: pool.map(_play, numbers)
    finally:
        pool.shutdown(cancel_futures=True)
