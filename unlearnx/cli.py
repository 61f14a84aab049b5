"""The command line: ``unlearnx info``, ``unlearnx run`` and ``unlearnx unlearn``."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

try:
    import typer
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
except ImportError as error:
    raise SystemExit(f"unlearnx: the command line needs pip install 'unlearnx[experiments]' ({error})") from error

from unlearnx import build_info
from unlearnx.data import FEATURE_TABLES
from unlearnx.methods import METHODS

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
console = Console()

NOVEL = "alice_in_wonderland.txt"
DATA = (
    f"CIFAR-10: folder or archive; canary-alice: folder with {NOVEL}, or a text; features-*: folder with the tables; "
    "$UNLEARNX_DATA where not given, but for CIFAR-10"
)


FACTORY = "module:function, found in the current directory or among installed packages; it "


def _listed(names: Iterable[str], word: str = "and") -> str:
    *most, last = names
    return f"{', '.join(most)} {word} {last}" if most else last


@app.command()
def info() -> None:
    """Show how unlearnx was built and what it sees on this machine."""
    import torch

    rows: dict[str, Any] = {**build_info(), "torch running": torch.__version__}
    rows["torch threads"] = torch.get_num_threads()
    rows["GPUs"] = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or None
    table = Table(show_header=False, box=None)
    for key, value in rows.items():
        table.add_row(key.replace("_", " "), "none" if value is None else str(value))
    console.print(table)


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

    if data_root is None:
        raise ValueError("--data-root is missing: the folder or archive of CIFAR-10")
    if (clean is None) != (poisoned is None):
        raise ValueError("--clean and --poisoned come together")
    checkpoints = Checkpoints.find(clean, poisoned, poison) if clean and poisoned else None
    return poison_cifar(data_root, checkpoints=checkpoints, **settings)


def _alice(*, data_root: Path | None = None, **settings: Any) -> Any:
    from unlearnx.experiments import canary_alice

    if data_root is None:
        if not os.environ.get("UNLEARNX_DATA"):
            raise ValueError(f"--data-root is missing: the folder with {NOVEL}; UNLEARNX_DATA may name it too")
        data_root = Path(os.environ["UNLEARNX_DATA"])
    return canary_alice(data_root / NOVEL if data_root.is_dir() else data_root, **settings)


def _features(name: str, *, data_root: Path | None = None, **settings: Any) -> Any:
    from unlearnx.experiments import features

    if data_root is None:
        if not os.environ.get("UNLEARNX_DATA"):
            raise ValueError("--data-root is missing: the folder with the tables; UNLEARNX_DATA may name it too")
        data_root = Path(os.environ["UNLEARNX_DATA"])
    return features(name, data_root, **settings)


@dataclass(frozen=True)
class _Experiment:
    """An experiment as the command line offers it.

    Attributes:
        study: makes it of its options and of those that every experiment has: epochs, preset and progress.
        options: those of its own.
        seeds: runs, where their number is not given.
    """

    study: Callable[..., Any]
    options: tuple[str, ...] = ()
    seeds: int = 1


EXPERIMENTS = {
    "poison-digits": _Experiment(_digits, seeds=3),
    "poison-cifar": _Experiment(_cifar, ("data_root", "limit", "budget", "clean", "poisoned", "poison")),
    "canary-alice": _Experiment(_alice, ("data_root",), seeds=3),
    **{f"features-{name}": _Experiment(partial(_features, name), ("data_root",), seeds=20) for name in FEATURE_TABLES},
}


@app.command()
def run(
    experiment: Annotated[str, typer.Argument(help=_listed(EXPERIMENTS, "or"))] = "poison-digits",
    preset: Annotated[
        str, typer.Option(help="default, reference (published protocol), best (poison-cifar) or sweep (canary-alice)")
    ] = "default",
    seeds: Annotated[int, typer.Option(min=0, help="runs with different seeds; 0 for the experiment's own")] = 0,
    data_root: Annotated[Path | None, typer.Option(help=DATA)] = None,
    limit: Annotated[int | None, typer.Option(help="training images to use (poison-cifar)")] = None,
    epochs: Annotated[int | None, typer.Option(help="epochs of every training")] = None,
    budget: Annotated[int | None, typer.Option(help="labels to flip (poison-cifar)")] = None,
    clean: Annotated[Path | None, typer.Option(help="checkpoint trained on clean labels (poison-cifar)")] = None,
    poisoned: Annotated[Path | None, typer.Option(help="checkpoint trained on poisoned labels (poison-cifar)")] = None,
    poison: Annotated[Path | None, typer.Option(help="poison of that checkpoint (.npz); looked for beside it")] = None,
    out: Annotated[Path, typer.Option(help="folder of all runs")] = Path("runs"),
    name: Annotated[str | None, typer.Option(help="folder of this run; experiment and time where not given")] = None,
    progress: Annotated[bool, typer.Option(help="show progress bars")] = True,
) -> None:
    """Run an experiment; write result.json, the models and report.html to runs/NAME."""
    from unlearnx.experiments import report

    own = {"data_root": data_root, "limit": limit, "budget": budget}
    own |= {"clean": clean, "poisoned": poisoned, "poison": poison}
    try:
        study = _study(experiment, own, epochs=epochs, preset=preset, progress=progress)
        folder = out / (name or f"{experiment}-{datetime.now():%Y%m%d-%H%M%S}")
        study.log = console.log
        result = study.run(list(range(seeds or EXPERIMENTS[experiment].seeds)), folder)
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        _refuse(f"run {experiment}", error)
    result["command"] = _command()
    result["environment"] = report.environment()
    path = report.write(result, folder)
    console.print(report.table(result))
    console.print(f"Report: [bold]{path}[/]")


def _study(experiment: str, own: dict[str, Any], **common: Any) -> Any:
    """The study that was asked for; refuses options that are those of other experiments."""
    if experiment not in EXPERIMENTS:
        raise ValueError(f"no such experiment; there are {_listed(EXPERIMENTS)}")
    given = {option: value for option, value in own.items() if value is not None}
    for option in given:
        if option not in EXPERIMENTS[experiment].options:
            owners = [name for name, other in EXPERIMENTS.items() if option in other.options]
            raise ValueError(f"--{option.replace('_', '-')} belongs to {_listed(owners)}")
    return EXPERIMENTS[experiment].study(**given, **common)


@app.command()
def unlearn(
    model: Annotated[str, typer.Option(help=FACTORY + "builds the model")],
    weights: Annotated[Path, typer.Option(help="its weights: safetensors, or a state dict saved by torch.save")],
    data: Annotated[str, typer.Option(help=FACTORY + "gives the training data: a Dataset, a DataLoader or (x, y)")],
    method: Annotated[str, typer.Option(help=_listed(METHODS, "or"))],
    out: Annotated[Path, typer.Option(help="folder for the new weights, audit.json and audit.html")],
    forget: Annotated[
        Path | None, typer.Option(help="indices to forget: .npy, or a text with one on each line")
    ] = None,
    forget_class: Annotated[int | None, typer.Option(help="class to forget")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="name=value of the method, repeatable; an unknown name lists them all")
    ] = None,
    test: Annotated[str | None, typer.Option(help="test data, as --data; needed for membership attacks")] = None,
    retrained: Annotated[
        Path | None, typer.Option(help="weights of a model trained without the points, to compare with")
    ] = None,
    params: Annotated[
        str | None, typer.Option(help="weights that may change: last:6, or names with commas; all where not given")
    ] = None,
    seed: Annotated[int, typer.Option(help="of every random choice")] = 0,
    batch_size: Annotated[int | None, typer.Option(help="samples a pass")] = None,
    device: Annotated[str | None, typer.Option(help="such as cpu or cuda:1; the GPU where there is one")] = None,
    progress: Annotated[bool, typer.Option(help="show progress bars")] = True,
) -> None:
    """Make a model of your own forget; write its new weights and an audit.

    Exit status: 0 where the method was applied, 1 where it was not (the audit says why), 2 where an argument is wrong.
    """
    from unlearnx.experiments import arguments, report
    from unlearnx.experiments import unlearn as run_unlearn

    try:
        chosen = arguments.parameters(params)
        how = arguments.build_method(
            method, option or [], params=chosen, seed=seed, batch_size=batch_size, progress=progress
        )
        audit = run_unlearn(
            model_factory=arguments.factory("--model", model),
            weights=weights,
            data=arguments.factory("--data", data)(),
            forget=None if forget is None else arguments.read_indices(forget),
            forget_class=forget_class,
            test=None if test is None else arguments.factory("--test", test)(),
            retrained=retrained,
            method=how,
            out=out,
            device=device,
            command=_command(),
            log=console.log,
        )
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        _refuse("unlearn", error)
    console.print(report.audit_table(audit))
    if audit["warning"]:
        console.print(f"[yellow]{escape(audit['warning'])}[/]")
    console.print(f"Audit: [bold]{out / 'audit.html'}[/]")
    if not audit["applied"]:
        console.print(f"[red]Not applied[/]: {escape(audit['reason'])}", highlight=False)
        raise typer.Exit(1)


def _command() -> str:
    return shlex.join(["unlearnx", *sys.argv[1:]])


def _refuse(command: str, error: Exception) -> NoReturn:
    console.print(f"[red]unlearnx {command}[/]: {escape(str(error))}", highlight=False)
    raise typer.Exit(2) from error


def main() -> None:
    """Entry point of the command ``unlearnx``."""
    app()
