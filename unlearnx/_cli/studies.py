"""The experiments as the command line offers them, and how one is run and written down."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import typer

from unlearnx._cli.output import NOT_APPLIED, Output, command_line
from unlearnx._progress import progress_bar
from unlearnx.data import FEATURE_TABLES

NOVEL = "alice_in_wonderland.txt"
DIGITS = "mnist-10k.npz"


def listed(names: Iterable[str], word: str = "and") -> str:
    """The names as they stand in a sentence: ``a, b and c``."""
    *most, last = names
    return f"{', '.join(most)} {word} {last}" if most else last


@dataclass(frozen=True)
class Experiment:
    """An experiment as the command line offers it.

    Attributes:
        study: builds the study from its own options and those that every experiment has: epochs, preset, progress.
        options: names of its own options.
        seeds: number of runs where none is given.
        compares: whether `compare` offers it: it takes names of methods and measures them against retraining. Such a
            study goes on where it stopped.
    """

    study: Callable[..., Any]
    options: tuple[str, ...] = ()
    seeds: int = 1
    compares: bool = False


def _digits(**settings: Any) -> Any:
    from unlearnx.experiments import poison_digits

    return poison_digits(**settings)


def _cifar(
    *,
    data_root: Path | None = None,
    clean: Path | None = None,
    poisoned: Path | None = None,
    poison: Path | None = None,
    **settings: Any,
) -> Any:
    from unlearnx.experiments import Checkpoints, poison_cifar

    root = _cifar_root(data_root)
    if (clean is None) != (poisoned is None):
        raise ValueError(
            f"{'--clean' if clean else '--poisoned'} is given alone, expected both --clean and --poisoned, or neither"
        )
    if poison is not None and poisoned is None:
        raise ValueError("--poison is given alone, expected --clean and --poisoned too, the models it belongs to")
    if poisoned is not None and settings.get("budget") is not None:
        raise ValueError("--budget is given with --poisoned, whose labels are flipped already, expected one of them")
    checkpoints = Checkpoints.find(clean, poisoned, poison) if clean and poisoned else None
    return poison_cifar(root, checkpoints=checkpoints, **settings)


def _cifar_root(data_root: Path | None) -> Path:
    if data_root is None:
        raise ValueError("--data-root is missing, expected the folder or archive of CIFAR-10")
    return data_root


def _alice(*, data_root: Path | None = None, **settings: Any) -> Any:
    from unlearnx.experiments import canary_alice

    root = _data_root(data_root, NOVEL)
    return canary_alice(root / NOVEL if root.is_dir() else root, **settings)


def _mnist(*, data_root: Path | None = None, **settings: Any) -> Any:
    from unlearnx.experiments import repair_mnist

    return repair_mnist(_data_root(data_root, DIGITS), **settings)


def _data_root(given: Path | None, file: str) -> Path:
    """The folder, or file, that was given; otherwise the folder that the environment names."""
    if given is None:
        if not os.environ.get("UNLEARNX_DATA"):
            raise ValueError(f"--data-root is missing, expected the folder with {file}; UNLEARNX_DATA may name it too")
        given = Path(os.environ["UNLEARNX_DATA"])
    return given


def _features(name: str, *, data_root: Path | None = None, **settings: Any) -> Any:
    from unlearnx.experiments import features

    return features(name, _data_root(data_root, "its tables"), **settings)


def _forget(name: str, *options: str, seeds: int = 1) -> Experiment:
    """A study of forgetting, with a few methods where none are named."""

    def study(**settings: Any) -> Any:
        from unlearnx.experiments.forget import DEFAULT_METHODS, STUDIES

        if "data_root" in options:
            settings["root"] = _cifar_root(settings.pop("data_root", None))
        return STUDIES[name](**{"methods": DEFAULT_METHODS, **settings})

    return Experiment(study, (*options, "sweep"), seeds, compares=True)


EXPERIMENTS = {
    "poison-digits": Experiment(_digits, seeds=3),
    "poison-cifar": Experiment(_cifar, ("data_root", "limit", "budget", "clean", "poisoned", "poison")),
    "canary-alice": Experiment(_alice, ("data_root",), seeds=3),
    "forget-class-digits": _forget("forget-class-digits", "forget_class", seeds=3),
    "forget-random-digits": _forget("forget-random-digits", "share", seeds=3),
    "forget-class-cifar": _forget("forget-class-cifar", "data_root", "limit", "forget_class"),
    "forget-random-cifar": _forget("forget-random-cifar", "data_root", "limit", "share"),
    **{f"features-{name}": Experiment(partial(_features, name), ("data_root",), seeds=20) for name in FEATURE_TABLES},
    "repair-mnist": Experiment(_mnist, ("data_root", "noise", "noise_kind")),
}
COMPARING = [name for name, entry in EXPERIMENTS.items() if entry.compares]


def study_of(experiment: str, own: dict[str, Any], **common: Any) -> Any:
    """The study that was asked for.

    Raises:
        ValueError: there is no such experiment, or an option is one of other experiments.
    """
    if experiment not in EXPERIMENTS:
        raise ValueError(f"EXPERIMENT is {experiment!r}, expected one of {listed(EXPERIMENTS, 'or')}")
    given = {option: value for option, value in own.items() if value is not None}
    for option in given:
        if option not in EXPERIMENTS[experiment].options:
            owners = [name for name, other in EXPERIMENTS.items() if option in other.options]
            raise ValueError(f"--{option.replace('_', '-')} is not an option of {experiment}, but of {listed(owners)}")
    return EXPERIMENTS[experiment].study(**given, **common)


def folder_of(out: Path, name: str | None, title: str) -> Path:
    """Where a run goes: the given name, or a title with the time."""
    return out / (name or f"{title}-{datetime.now():%Y%m%d-%H%M%S}")


def carry_out(output: Output, study: Any, experiment: str, seeds: int, folder: Path, progress: bool) -> None:
    """Run a study, write what it found and show it."""
    from unlearnx.experiments import report
    from unlearnx.experiments.output_folder import MIN_ROOM, claimed

    _check_experiment(folder, experiment)
    finished = () if EXPERIMENTS[experiment].compares else ("result.json",)
    study.log = output.log
    with claimed(folder, finished, MIN_ROOM + max(0, study.room(seeds) - _models_size(folder))):
        output.log(f"results go to {folder}")
        with progress_bar(experiment, None, progress):
            result = study.run(list(range(seeds)), folder)
        result["command"] = command_line()
        result["environment"] = report.environment()
        path = report.write(result, folder)
    output.result({**result, "report": str(path)}, report.table(result), verdict=[("Report", path)])


def _models_size(folder: Path) -> int:
    """Bytes of the models that an earlier run has left in the folder."""
    return sum(file.stat().st_size for file in folder.rglob("*.pt")) if folder.is_dir() else 0


def _check_experiment(folder: Path, experiment: str) -> None:
    file = folder / "result.json"
    if file.is_file():
        try:
            found = json.loads(file.read_text())["experiment"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"out: {file} is not of a run, expected a folder without results") from error
        if found != experiment:
            raise ValueError(f"out: {folder} holds a run of {found}, expected another folder for {experiment}")


def repeat(
    output: Output, file: Path, held: dict[str, Any], *, out: Path, name: str | None, progress: bool, **settings: Any
) -> None:
    """Make a trial again and show its numbers beside the recorded ones; exits with 1 where they differ."""
    from unlearnx.experiments import forget
    from unlearnx.experiments.evaluation import changed
    from unlearnx.experiments.output_folder import claimed
    from unlearnx.experiments.report.forget import comparison
    from unlearnx.experiments.run_store import read_trial

    for option in (option for option, value in held.items() if value is not None):
        raise ValueError(f"--{option.replace('_', '-')} cannot be given with --recipe: the recipe says it already")
    recorded = read_trial(file)
    folder = folder_of(out, name, f"repeat-{file.stem}")
    with claimed(folder), progress_bar(f"repeating {file.stem}", None, progress):
        repeated = forget.repeat(
            recorded["recipe"], folder, beside=file.parent, log=output.log, progress=progress, **settings
        )
    different = changed(recorded, repeated)
    output.result(
        {"recorded": recorded, "repeated": repeated, "different": different},
        comparison(recorded, repeated, different),
        verdict=[("Measures that differ", ", ".join(different) or "none"), ("Trials", folder / "trials")],
    )
    if different:
        raise typer.Exit(NOT_APPLIED)
