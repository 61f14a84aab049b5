"""Forgetting features of a table: how far from a retrained model does each method end, and at what cost?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from unlearnx._extras import extra
from unlearnx._files import write_atomically
from unlearnx._progress import progress_bar
from unlearnx.data import FEATURE_TABLES, FeatureTable
from unlearnx.experiments.report import features as report
from unlearnx.experiments.study import Data, Epochs, Prepared, Preset, Study, check_preset
from unlearnx.methods import CertifiedRemoval

PAUSE_SECONDS = 0.03  # before a timed call, because threads of the library used before still spin for a while
RETRAINED_RESIDUAL = 1e-5  # gradient norm at which retraining stops
NEWTON_TOLERANCE = 3e-2  # relative, of the linear systems of Newton steps
SGD_BATCH_SIZE = 256  # samples in one step of fine-tuning
SGD_LEARNING_RATE = 1.0  # of fine-tuning, for the mean over samples
SISA_SHARDS = 10
FEATURE_COUNTS = {"enron": (1, 10, 50, 100), "drebin": (1, 10, 50, 100), "adult": (1, 2, 4, 7), "diabetes": (1, 2, 4)}
METHODS = {
    "fine-tuning": f"one epoch of SGD on the changed data, batch size {SGD_BATCH_SIZE}, rate {SGD_LEARNING_RATE:g}",
    "first order": "a step down the gradient of the changed objective, to the minimum along it by its curvature",
    "second order": f"CertifiedRemoval(certified=False, tolerance={NEWTON_TOLERANCE:g}).remove_features(columns)",
    "second order, 2 steps": (
        f"CertifiedRemoval(certified=False, tolerance={NEWTON_TOLERANCE:g}).remove_features(columns, steps=2)"
    ),
    "SISA": f"{SISA_SHARDS} models, each of a part of the samples; those whose samples have the features are retrained",
}
NEWTON_STEPS = {"second order": 1, "second order, 2 steps": 2}


@dataclass
class FeatureStudy(Prepared):
    """One experiment with features to forget.

    Attributes:
        name: of the experiment.
        table: the data.
        counts: numbers of features to forget, ascending.
        lam: weight of the L2 penalty, relative to the sum of the losses of all samples.
    """

    name: str
    table: FeatureTable
    counts: tuple[int, ...]
    lam: float = 1.0

    def room(self, seeds: int) -> int:
        """Bytes that a run of so many seeds writes at most, besides its report."""
        return 8 * (self.table.train_x.shape[1] + 1)

    def run(self, seeds: list[int], folder: Path) -> dict[str, Any]:
        """Forget drawn features for each seed; saves the trained parameters; returns the content of result.json."""
        table = self.table
        start = time.perf_counter()
        removal = CertifiedRemoval(certified=False, lam=self.lam, tolerance=NEWTON_TOLERANCE)
        model = removal.fit(table.train_x, table.train_y)
        seconds = time.perf_counter() - start
        theta = model.theta[:, 0].numpy()
        write_atomically(folder / "theta.npy", lambda file: np.save(file, theta))
        self.log(f"trained on {len(table.train_y):,} samples of {len(theta):,} features in {seconds:.2f} s")
        shards = Shards(table, self.lam)
        draws = {count: [self._draw(count, seed) for seed in seeds] for count in self.counts}
        for choices in (draws[self.counts[0]][:1], draws[self.counts[0]]):  # a first call, which fills caches
            model.many_features(choices)
        runs: list[dict[str, Any]] = [{"seed": seed, "counts": {}} for seed in seeds]
        together = {}
        with progress_bar("forgetting features", len(seeds) * len(self.counts), self.progress) as advance:
            for count, choices in draws.items():
                for run, columns in zip(runs, choices, strict=True):
                    run["counts"][str(count)] = _FeatureDraw(self, model, shards, theta, columns).results()
                    advance(1)
                together[str(count)] = self._together(model, choices, runs, str(count))
        return {
            "experiment": self.name,
            "preset": "default",
            "kind": table.kind,
            "rows": len(table.train_y),
            "test_rows": len(table.test_y),
            "features": len(theta),
            "sensitive": len(table.sensitive),
            "lam": self.lam,
            "accuracy": float(((table.test_x @ theta > 0) == table.test_y).mean()),
            "training_seconds": seconds,
            "retrained_to": RETRAINED_RESIDUAL,
            "methods": METHODS,
            "counts": list(self.counts),
            "runs": runs,
            "summary": {str(count): _summary(runs, str(count)) for count in self.counts},
            "together": together,
        }

    def _draw(self, count: int, seed: int) -> list[int]:
        """The columns of `count` random sensitive features."""
        groups = list(self.table.sensitive.values())
        drawn = np.random.default_rng([seed, count]).choice(len(groups), count, replace=False)
        return sorted(column for k in drawn for column in groups[k])

    def _together(
        self, model: CertifiedRemoval, choices: list[list[int]], runs: list[dict[str, Any]], count: str
    ) -> dict[str, Any]:
        """Solves all draws at once; compares with the time that they took one by one."""
        found = {}
        for name, steps in NEWTON_STEPS.items():
            removals, seconds = _timed(partial(model.many_features, choices, steps=steps))
            residuals = [
                Regression(self.table.train_x, self.table.train_y, self.lam, columns).residual(
                    removal.theta[:, 0].numpy()
                )
                for columns, removal in zip(choices, removals, strict=True)
            ]
            alone = sum(run["counts"][count][name]["seconds"] for run in runs)
            found[name] = {"seconds": seconds, "share": seconds / alone, "residual": fmean(residuals)}
            self.log(
                f"{count} features, {name}: {len(choices)} requests at once take {100 * found[name]['share']:.0f} %"
            )
        return found


class _FeatureDraw:
    """One random choice of features to forget."""

    def __init__(
        self, study: FeatureStudy, model: CertifiedRemoval, shards: Shards, theta: np.ndarray, columns: list[int]
    ):
        self.table, self.model, self.theta, self.columns = study.table, model, theta, columns
        self.shards = shards
        self.regression = Regression(study.table.train_x, study.table.train_y, study.lam, columns)

    def results(self) -> dict[str, Any]:
        """Measures of each method."""
        retrained, seconds = _timed(self.regression.retrain)
        reference = self.table.test_x @ retrained > 0
        start = self.theta * self.regression.kept
        found = {"before": self._measured(start, reference)}
        # The original model still has the parameters of the features to forget, and the penalty on them counts.
        penalty = self.regression.lam * np.linalg.norm(self.theta - start)
        found["before"]["residual"] = float(np.hypot(found["before"]["residual"], penalty))
        ways: dict[str, Callable[[], np.ndarray]] = {
            "fine-tuning": lambda: self.regression.fine_tune(start),
            "first order": lambda: self.regression.descend(start),
        }
        for name, steps in NEWTON_STEPS.items():
            ways[name] = partial(self._newton, steps)
        for name, way in ways.items():
            theta, spent = _timed(way)
            found[name] = {**self._measured(theta, reference), "seconds": spent, "speedup": seconds / spent}
        parameters, spent = _timed(lambda: self.shards.without(self.columns))
        chances = self.shards.chances(parameters)
        found["SISA"] = {**self._judged(chances > 0.5, reference), "seconds": spent, "speedup": seconds / spent}
        found["retrained"] = {**self._measured(retrained, reference), "seconds": seconds, "speedup": 1.0}
        return found

    def _newton(self, steps: int) -> np.ndarray:
        (removal,) = self.model.many_features([self.columns], steps=steps)
        return removal.theta[:, 0].numpy()

    def _measured(self, theta: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
        judged = self._judged(self.table.test_x @ theta > 0, reference)
        return {"residual": self.regression.residual(theta), **judged}

    def _judged(self, predicted: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
        return {
            "agreement": float((predicted == reference).mean()),
            "accuracy": float((predicted == (self.table.test_y > 0)).mean()),
        }


class Regression:
    """Logistic regression without some of its features, in NumPy and SciPy: the reference and the baselines."""

    def __init__(self, x: Any, y: np.ndarray, lam: float, columns: Sequence[int] = ()):
        self.x, self.lam = x, lam
        self.signs = 2.0 * y - 1
        self.kept = np.ones(self.x.shape[1])
        self.kept[list(columns)] = 0

    def value_and_gradient(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """The objective and its gradient, without the columns to forget."""
        from scipy.special import expit

        margins = self.signs * (self.x @ (theta * self.kept))
        gradient = self.kept * (self.x.T @ (-self.signs * expit(-margins)) + self.lam * theta)
        return np.logaddexp(0, -margins).sum() + self.lam / 2 * (theta @ theta), gradient

    def residual(self, theta: np.ndarray) -> float:
        """Norm of the objective's gradient."""
        return float(np.linalg.norm(self.value_and_gradient(theta)[1]))

    def retrain(self) -> np.ndarray:
        """Train from scratch by L-BFGS, until the norm of the gradient is small enough."""
        from scipy.optimize import minimize

        norm = float("inf")

        def evaluate(theta: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal norm
            value, gradient = self.value_and_gradient(theta)
            norm = float(np.linalg.norm(gradient))
            return value, gradient

        def stop(_: np.ndarray) -> None:
            if norm <= RETRAINED_RESIDUAL:
                raise StopIteration

        options = {"maxiter": 10_000, "maxfun": 20_000, "ftol": 0.0, "gtol": 0.0}
        start = np.zeros(self.x.shape[1])
        return minimize(evaluate, start, jac=True, method="L-BFGS-B", callback=stop, options=options).x

    def fine_tune(self, theta: np.ndarray) -> np.ndarray:
        """One epoch of stochastic gradient descent."""
        from scipy.special import expit

        order = np.random.default_rng(0).permutation(len(self.signs))
        for begin in range(0, len(order), SGD_BATCH_SIZE):
            batch = order[begin : begin + SGD_BATCH_SIZE]
            x, signs = self.x[batch], self.signs[batch]
            gradient = x.T @ (-signs * expit(-signs * (x @ theta))) / len(batch)
            theta = theta - SGD_LEARNING_RATE * self.kept * (gradient + self.lam / len(order) * theta)
        return theta

    def descend(self, theta: np.ndarray) -> np.ndarray:
        """One step down the gradient, to the minimum of the objective's quadratic model along it."""
        from scipy.special import expit

        gradient = self.value_and_gradient(theta)[1]
        chance = expit(self.x @ theta)
        along = self.x @ gradient
        curvature = (chance * (1 - chance)) @ along**2 + self.lam * (gradient @ gradient)
        return theta - (gradient @ gradient) / curvature * gradient


class Shards:
    """SISA for features: a model for each part of the samples, trained again if its samples have a feature to forget.

    The penalty is divided among the parts. SISA forgets exactly, but the average of its models is not a minimum of the
    objective on all samples, so it has no gradient residual to report.
    """

    def __init__(self, table: FeatureTable, lam: float):
        order = np.random.default_rng(0).permutation(len(table.train_y))
        rows = [np.sort(order[k::SISA_SHARDS]) for k in range(SISA_SHARDS)]
        self.data = [(table.train_x[part], table.train_y[part]) for part in rows]
        self.lam, self.test_x = lam / SISA_SHARDS, table.test_x
        self.theta = [Regression(x, y, self.lam).retrain() for x, y in self.data]
        self.counts = [np.asarray((x != 0).sum(0)).ravel() for x, _ in self.data]

    def without(self, columns: list[int]) -> list[np.ndarray]:
        """The parameters of each model after the columns are forgotten."""
        return [
            Regression(x, y, self.lam, columns).retrain() if counts[columns].any() else theta
            for (x, y), counts, theta in zip(self.data, self.counts, self.theta, strict=True)
        ]

    def chances(self, parameters: list[np.ndarray]) -> np.ndarray:
        """Probability of class 1 for each test sample, averaged over the models."""
        from scipy.special import expit

        return np.mean([expit(self.test_x @ theta) for theta in parameters], 0)


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a call, and the seconds of a second call, when caches are warm."""
    call()
    time.sleep(PAUSE_SECONDS)
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def _summary(runs: list[dict[str, Any]], count: str) -> dict[str, dict[str, float]]:
    """Means over the draws, and medians of the seconds."""
    draws = [run["counts"][count] for run in runs]
    found: dict[str, dict[str, float]] = {}
    for name in draws[0]:
        entries = [draw[name] for draw in draws]
        found[name] = {key: fmean(e[key] for e in entries) for key in ("agreement", "accuracy")}
        if "residual" in entries[0]:
            residuals = [e["residual"] for e in entries]
            found[name] |= {"residual": fmean(residuals), "largest_residual": max(residuals)}
        accuracy = fmean(draw["retrained"]["accuracy"] for draw in draws)
        found[name]["relative_accuracy"] = found[name]["accuracy"] / accuracy
        if "seconds" in entries[0]:
            found[name]["seconds"] = median(e["seconds"] for e in entries)
    retraining = found["retrained"]["seconds"]
    for entry in found.values():
        if "seconds" in entry:
            entry["speedup"] = retraining / entry["seconds"]
    return found


def features(
    name: str, folder: Path, *, epochs: Epochs = None, preset: Preset = "default", progress: bool = True
) -> FeatureStudy:
    """Forget 1 to 100 features of a table: surnames in e-mails, addresses in apps, columns of small tables.

    Args:
        name: "enron", "drebin", "adult" or "diabetes".
        folder: with its files, see :mod:`unlearnx.data.features`.
        epochs: must be None: training stops when the gradient vanishes.
        preset: ``"default"``.
        progress: show progress bars.

    Raises:
        FileNotFoundError: a file is missing.
        ImportError: scikit-learn is missing, or SciPy, which comes with it.
        ValueError: there is no such preset, or epochs are given.

    Source: Warnecke et al., "Machine Unlearning of Features and Labels", NDSS 2023.
    """
    check_preset(f"features-{name}", preset)
    if epochs is not None:
        raise ValueError(f"epochs is {epochs}, expected None: features-{name} trains until the gradient vanishes")
    with extra(f"features-{name}", "scipy"):
        import scipy  # noqa: F401
    return FeatureStudy(f"features-{name}", FEATURE_TABLES[name](folder), FEATURE_COUNTS[name], progress=progress)


FEATURES = [
    Study(
        *(f"features-{name}", partial(features, name), report.page, report.table),
        needs=Data("the folder with its tables"),
        seeds=20,
    )
    for name in FEATURE_TABLES
]
