"""How the command line prepares a study, runs it and writes it down."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer

from unlearnx._cli.output import NOT_APPLIED, Output, command_line
from unlearnx._cli.running import Running
from unlearnx._progress import progress_bar
from unlearnx.experiments.forget.studies import FORGETTING
from unlearnx.experiments.registry import STUDIES
from unlearnx.experiments.study import Data, Prepared

COMPARING = [name for name, study in STUDIES.items() if study.compared is not None]
TUNING = [name for name in COMPARING if STUDIES[name] in FORGETTING]  # others choose strengths by themselves


def listed(names: Iterable[str], word: str = "and") -> str:
    """The names as they stand in a sentence: ``a, b and c``."""
    *most, last = names
    return f"{', '.join(most)} {word} {last}" if most else last


def study_of(experiment: str, data_root: Path | None, own: dict[str, Any], **common: Any) -> Prepared:
    """The study that was asked for.

    Args:
        experiment: its name.
        data_root: what was given for its data.
        own: values of its options; those that were not given are None.
        common: further arguments of the function that prepares it.

    Raises:
        ValueError: there is no such experiment, an option is one of other experiments, or data are missing.
    """
    if experiment not in STUDIES:
        raise ValueError(f"EXPERIMENT is {experiment!r}, expected one of {listed(STUDIES, 'or')}")
    study = STUDIES[experiment]
    if data_root is not None and study.needs is None:
        raise _foreign("data_root", experiment, [name for name, other in STUDIES.items() if other.needs is not None])
    given = {option: value for option, value in own.items() if value not in (None, [])}
    for option in given:
        if option not in study.options:
            owners = [name for name, other in STUDIES.items() if option in other.options]
            raise _foreign(option, experiment, owners)
    data = [] if study.needs is None else [_data(study.needs, data_root)]
    compared = {} if study.compared is None else {"methods": study.compared}
    return study.make(*data, **{**compared, **given, **common})


def _foreign(option: str, experiment: str, owners: list[str]) -> ValueError:
    return ValueError(f"{flag(option)} is not an option of {experiment}, but of {listed(owners)}")


def flag(option: str) -> str:
    """The option as it is typed."""
    return f"--{option.replace('_', '-')}"


def _data(needs: Data, given: Path | None) -> Path:
    """The folder, or file, that was given; otherwise the folder that the environment names."""
    if given is not None:
        return given
    if needs.in_environment and os.environ.get("UNLEARNX_DATA"):
        return Path(os.environ["UNLEARNX_DATA"])
    hint = "; UNLEARNX_DATA may name it too" if needs.in_environment else ""
    raise ValueError(f"--data-root is missing, expected {needs.what}{hint}")


def carry_out(output: Output, study: Prepared, experiment: str, seeds: int, running: Running) -> None:
    """Run a study, write what it found and show it."""
    from unlearnx.experiments import report
    from unlearnx.experiments.output_folder import MIN_ROOM, claimed

    folder = running.folder(experiment)
    _check_experiment(folder, experiment)
    known = STUDIES[experiment]
    finished = () if known.compared is not None else ("result.json",)
    study.log = output.log
    with claimed(folder, finished, MIN_ROOM + max(0, study.room(seeds) - _models_size(folder))):
        output.log(f"results go to {folder}")
        with progress_bar(experiment, None, running.shows_progress):
            result = study.run(list(range(seeds)), folder)
        result["command"] = command_line()
        result["environment"] = report.environment()
        path = report.write(result, known.page, folder)
    output.result({**result, "report": str(path)}, known.table(result), verdict=[("Report", path)])


def search(output: Output, study: Prepared, experiment: str, trials: int, running: Running) -> None:
    """Search the arguments of a study's methods, write what was found and show it."""
    from unlearnx.experiments import forget, report
    from unlearnx.experiments.output_folder import MIN_ROOM, claimed
    from unlearnx.experiments.report import tuning
    from unlearnx.experiments.runs import write_json

    assert isinstance(study, forget.ForgetStudy)
    folder = running.folder(f"tune-{experiment}")
    study.log = output.log
    with claimed(folder, ("result.json",), MIN_ROOM + max(0, study.room(trials) - _models_size(folder))):
        output.log(f"results go to {folder}")
        with progress_bar(f"tuning {experiment}", None, running.shows_progress):
            found = forget.tune(study, trials, folder)
        found["command"] = command_line()
        found["environment"] = report.environment()
        write_json(folder / "tuned.json", found)
    output.result(found, tuning.table(found), verdict=[("Values", folder / "tuned.json")])


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


def repeat(output: Output, file: Path, held: dict[str, Any], running: Running, *, root: Path | None) -> None:
    """Make a trial again and show its numbers beside the recorded ones; exits with 1 where they differ.

    Args:
        output: what is written with.
        file: of the trial.
        held: values of options that a recipe holds already, of which none may be given.
        running: where the new trial goes.
        root: folder of the data, if it has moved.
    """
    from unlearnx.experiments import forget
    from unlearnx.experiments.measures import changed
    from unlearnx.experiments.output_folder import claimed
    from unlearnx.experiments.report.forget import comparison
    from unlearnx.experiments.run_store import read_trial

    for option in (option for option, value in held.items() if value not in (None, [])):
        raise ValueError(f"{flag(option)} cannot be given with --recipe: the recipe says it already")
    recorded = read_trial(file)
    folder, progress = running.folder(f"repeat-{file.stem}"), running.shows_progress
    with claimed(folder), progress_bar(f"repeating {file.stem}", None, progress):
        repeated = forget.repeat(
            recorded["recipe"], folder, beside=file.parent, root=root, log=output.log, progress=progress
        )
    different = changed(recorded, repeated)
    output.result(
        {"recorded": recorded, "repeated": repeated, "different": different},
        comparison(recorded, repeated, different),
        verdict=[("Measures that differ", ", ".join(different) or "none"), ("Trials", folder / "trials")],
    )
    if different:
        raise typer.Exit(NOT_APPLIED)
