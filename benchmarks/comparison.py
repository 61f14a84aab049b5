"""Competitors that take turns in one process, so that a machine that slows down slows all of them."""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

Run = Callable[[], object]

OURS = "ours"
QUICK_SECONDS = 6.0  # of rounds of one comparison, in the default run
MIN_ROUNDS = 3


class Claims:
    """What a benchmark asserts of speed or memory: kept for the summary, and a failure under ``--strict``."""

    def __init__(self, benchmark: Any, strict: bool):
        self._benchmark, self._strict = benchmark, strict

    def __call__(self, met: bool, text: str) -> None:
        """Note whether the claim `text` is met."""
        self._benchmark.extra_info.setdefault("claims", []).append({"text": text, "met": bool(met)})
        if self._strict and not met:
            pytest.fail(f"not met: {text}")


class Comparison:
    """Median seconds of competitors that took turns.

    Args:
        benchmark: pytest-benchmark's fixture, which the results are kept in.
        claim: of the same benchmark.
        device: that all competitors run on.
        quick: rounds end after ``QUICK_SECONDS``, three of them at least.
    """

    def __init__(self, benchmark: Any, claim: Claims, device: str, *, quick: bool):
        self._benchmark, self._claim, self._device, self._quick = benchmark, claim, device, quick

    def run(
        self,
        ours: Run,
        others: Mapping[str, Run],
        rounds: int = 15,
        warmups: int = 2,
        claims: Mapping[str, float] | None = None,
        refused: Mapping[str, str] | None = None,
        calls: Mapping[str, int] | None = None,
    ) -> dict[str, float]:
        """Ratios of medians, other / ours.

        Args:
            ours, others: what takes turns.
            rounds: turns of each.
            warmups: calls of each beforehand, for allocation, compilation and caches.
            claims: least ratio that is claimed for some of the others on a CPU. On a GPU, where nothing has been
                measured that a claim could rest on, ratios are reported alone.
            refused: ways that were left out, and why.
            calls: that some of the others need for what ours does in one; one of them is made, and counts so often.
        """
        competitors = {OURS: ours, **others}
        for run in competitors.values():
            for _ in range(min(warmups, 1) if self._quick else warmups):
                run()
        times = self._take_turns(competitors, rounds, calls or {})
        medians = {name: statistics.median(t) for name, t in times.items()}
        ratios = {name: medians[name] / medians[OURS] for name in others}
        spread = {name: _quartiles([a / b for a, b in zip(times[name], times[OURS], strict=True)]) for name in others}
        self._benchmark.extra_info.update(
            device=self._device, seconds=medians, ratios=ratios, spread=spread, refused=dict(refused or {})
        )
        self._benchmark.pedantic(ours, rounds=1 if self._quick else min(rounds, 3))
        for name, least in (claims or {}).items():
            if name in ratios and self._device == "cpu":
                slower = f"takes {least:g} times as long as ours or longer" if least != 1 else "is no faster than ours"
                self._claim(ratios[name] >= least, f"{name} {slower}")
        return ratios

    def _take_turns(
        self, competitors: Mapping[str, Run], rounds: int, calls: Mapping[str, int]
    ) -> dict[str, list[float]]:
        times: dict[str, list[float]] = {name: [] for name in competitors}
        begin = time.perf_counter()
        for done in range(rounds):
            if self._quick and done >= MIN_ROUNDS and time.perf_counter() - begin > QUICK_SECONDS:
                break
            for name, run in competitors.items():
                times[name].append(calls.get(name, 1) * _seconds(run, self._device))
        return times


def _quartiles(values: list[float]) -> list[float]:
    if len(values) < 2:
        return [values[0], values[0]]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]


def _seconds(run: Run, device: str) -> float:
    if device == "cuda":
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) / 1e3
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


class GivesSomethingElse(Exception):
    """A rival's result is not ours."""


def available(rivals: Mapping[str, Any], attempt: Callable[[Any], Run]) -> tuple[dict[str, Run], dict[str, str]]:
    """The rivals that `attempt` makes a run of, and what is wrong with the others, in words.

    It raises whatever a library does that is not installed or does not support a model, or
    :class:`GivesSomethingElse`.
    """
    runs, refused = {}, {}
    for name, rival in rivals.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                runs[name] = attempt(rival)
        except GivesSomethingElse:
            refused[name] = "gives something else"
        except Exception as error:
            refused[name] = f"{type(error).__name__}: {error}".splitlines()[0][:160]
    return runs, refused


def use_idle_cores() -> None:
    """Take a thread less than there are cores where that is faster, as it is beside a program that keeps one busy.

    Threads that share a core with another program make all others wait at the end of every parallel region.
    OMP_NUM_THREADS, where it is set, decides instead.
    """
    most = torch.get_num_threads()
    if most < 2 or "OMP_NUM_THREADS" in os.environ:
        return
    a = torch.randn(384, 384)
    times: dict[int, list[float]] = {most: [], most - 1: []}
    for _ in range(20):
        for threads, found in times.items():
            torch.set_num_threads(threads)
            a @ a
            found.append(_seconds(lambda: [a @ a for _ in range(4)], "cpu"))
    torch.set_num_threads(min(times, key=lambda threads: statistics.median(times[threads])))
