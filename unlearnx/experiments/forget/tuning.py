"""A search for the arguments of methods that sees no test image."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from unlearnx._extras import extra
from unlearnx.data import Splits
from unlearnx.experiments.forget.study import ForgetStudy
from unlearnx.experiments.forget.trials import SeedTrials
from unlearnx.experiments.run_store import RunStore
from unlearnx.experiments.runs import describe
from unlearnx.methods import Method, Pipeline

SEED = 1000  # of the models of a search: runs have seeds from 0 on
HELD_OUT = 0.1  # of the training images, in the place of test images
FACTOR = 10.0  # between a value and the ends of the range in which others are tried
SEARCHED = {
    *("lr", "max_lr", "repair_lr", "erase_lr"),
    *("alpha", "beta", "bound", "factor", "gamma", "lam", "ratio", "sigma", "step", "strength", "tau", "weight"),
}  # besides the field that a method names as its strength


def tune(study: ForgetStudy, trials: int, folder: Path) -> dict[str, Any]:
    """Search the arguments of every method of a study for the smallest gap to retraining.

    Models are trained on the first nine tenths of the training images, with a seed that no run has; the others stand
    for test images, which are not looked at. Learning rates and strengths, as far as they are numbers, are tried from a
    tenth to ten times their value, a share to one at most, by Optuna's tree-structured Parzen estimator on a
    logarithmic scale, as often for each method. The first trial is that of the values as they are.

    Every trial is kept under `folder`: a search that was stopped goes on.

    Args:
        study: whose methods are tuned.
        trials: of each method; one where a method has no such number.
        folder: of the search.

    Returns:
        What ``tuned.json`` holds: of each method, the method and its gap before and after, and all that was tried.

    Raises:
        ImportError: Optuna is missing; it comes with ``unlearnx[experiments]``.
        ValueError: a set is too small to be measured.
    """
    with extra("a search for arguments", "optuna"):
        import optuna
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    own = held_out(study)
    own.check_sizes()
    models, found = SeedTrials(own, SEED, RunStore(folder, study.log)), {}
    for name, method in study.methods.items():
        search = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
        start, tried = numbers(method), []
        highest = {key: _highest(method, key, value) for key, value in start.items()}
        search.enqueue_trial(start)
        for k in range(trials if start else 1):
            asked = search.ask()
            values = {key: asked.suggest_float(key, v / FACTOR, highest[key], log=True) for key, v in start.items()}
            entry = models.trial(f"{name} {k}", with_numbers(method, values))
            gap = entry["measures"]["gap"]
            search.tell(asked, gap)
            tried.append({"values": values, "gap": gap, "applied": entry["applied"]})
        best = min(tried, key=lambda row: row["gap"])
        found[name] = {
            "before": describe(method),
            "after": describe(with_numbers(method, best["values"])),
            "gap_before": tried[0]["gap"],
            "gap_after": best["gap"],
            "tried": tried,
        }
    return {"experiment": study.name, "preset": study.preset, "seed": SEED, "trials": trials, "methods": found}


def held_out(study: ForgetStudy) -> ForgetStudy:
    """The same study on the first training images, with the others in the place of test images."""
    kept = round((1 - HELD_OUT) * len(study.splits.train_y))

    def split(s: Splits) -> Splits:
        x, y = s.train_x, s.train_y
        return replace(s, train_x=x[:kept], train_y=y[:kept], test_x=x[kept:], test_y=y[kept:])

    finer = None if study.finer is None else split(study.finer)
    return replace(study, splits=split(study.splits), finer=finer, models=None)


def numbers(method: Method | Pipeline) -> dict[str, float]:
    """The numbers that are searched of a method, by argument; of a pipeline, by stage and argument: ``1.lr``."""
    if isinstance(method, Pipeline):
        stages = [numbers(stage) for stage in method.stages]
        return {f"{k}.{key}": value for k, own in enumerate(stages) for key, value in own.items()}
    searched = {*SEARCHED, method._strength}
    names = [own.name for own in fields(method) if own.name in searched and "float" in str(own.type)]
    given = {name: getattr(method, name) for name in names}
    return {name: float(v) for name, v in given.items() if isinstance(v, (int, float)) and v > 0}


def _highest(method: Method | Pipeline, key: str, value: float) -> float:
    """Up to where a number is tried: a method that does not take ten times its value takes a share."""
    try:
        with_numbers(method, {key: FACTOR * value})
    except ValueError:
        return 1.0
    return FACTOR * value


def with_numbers(method: Method | Pipeline, values: dict[str, float]) -> Method | Pipeline:
    """The method with other values of these arguments."""
    given: dict[str, Any] = dict(values)
    if not isinstance(method, Pipeline):
        return replace(method, **given)
    stages = [
        replace(stage, **{name.partition(".")[2]: v for name, v in given.items() if name.startswith(f"{k}.")})
        for k, stage in enumerate(method.stages)
    ]
    return replace(method, stages=stages)
