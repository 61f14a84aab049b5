"""The command line: ``unlearnx info``, ``run``, ``compare`` and ``unlearn``."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

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
DIGITS = "mnist-10k.npz"
DATA = (
    f"CIFAR-10: folder or archive; canary-alice: folder with {NOVEL}, or a text; repair-mnist: folder with {DIGITS}, "
    "or that file; features-*: folder with the tables; $UNLEARNX_DATA where not given, but for CIFAR-10"
)


FACTORY = "module:function, found in the current directory or among installed packages; it "


def _listed(names: Iterable[str], word: str = "and") -> str:
    *most, last = names
    return f"{', '.join(most)} {word} {last}" if most else last


@app.command()
def info(
    selftest: Annotated[bool, typer.Option("--selftest", help="run every op on every device; 1 on failure")] = False,
) -> None:
    """Show how unlearnx was built and what it sees on this machine."""
    import torch

    rows: dict[str, Any] = {**build_info(), "torch running": torch.__version__}
    rows["torch threads"] = torch.get_num_threads()
    rows["GPUs"] = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or None
    table = Table(show_header=False, box=None)
    for key, value in rows.items():
        table.add_row(key.replace("_", " "), "none" if value is None else str(value))
    console.print(table)
    if selftest:
        from unlearnx import selftest as tests

        if not tests.run():
            raise typer.Exit(1)


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
        raise ValueError("--clean and --poisoned come together")
    checkpoints = Checkpoints.find(clean, poisoned, poison) if clean and poisoned else None
    return poison_cifar(root, checkpoints=checkpoints, **settings)


def _cifar_root(data_root: Path | None) -> Path:
    if data_root is None:
        raise ValueError("--data-root is missing: the folder or archive of CIFAR-10")
    return data_root


def _alice(*, data_root: Path | None = None, **settings: Any) -> Any:
    from unlearnx.experiments import canary_alice

    root = _data_root(data_root, NOVEL)
    return canary_alice(root / NOVEL if root.is_dir() else root, **settings)


def _mnist(*, data_root: Path | None = None, **settings: Any) -> Any:
    from unlearnx.experiments import repair_mnist

    return repair_mnist(_data_root(data_root, DIGITS), **settings)


def _data_root(given: Path | None, file: str) -> Path:
    """Where a file of the data folder is looked for."""
    if given is None:
        if not os.environ.get("UNLEARNX_DATA"):
            raise ValueError(f"--data-root is missing: the folder with {file}; UNLEARNX_DATA may name it too")
        given = Path(os.environ["UNLEARNX_DATA"])
    return given


def _features(name: str, *, data_root: Path | None = None, **settings: Any) -> Any:
    from unlearnx.experiments import features

    return features(name, _data_root(data_root, "its tables"), **settings)


@dataclass(frozen=True)
class _Experiment:
    """An experiment as the command line offers it.

    Attributes:
        study: makes it of its options and of those that every experiment has: epochs, preset and progress.
        options: those of its own.
        seeds: runs, where their number is not given.
        compares: whether it can be asked for methods, and measures them against retraining.
    """

    study: Callable[..., Any]
    options: tuple[str, ...] = ()
    seeds: int = 1
    compares: bool = False


def _forget(name: str, *options: str, seeds: int = 1) -> _Experiment:
    """A study of forgetting: of a few methods where none are asked for."""

    def study(**settings: Any) -> Any:
        from unlearnx.experiments.forget import FEW, STUDIES

        if "data_root" in options:
            settings["root"] = _cifar_root(settings.pop("data_root", None))
        return STUDIES[name](**{"methods": FEW, **settings})

    return _Experiment(study, (*options, "sweep"), seeds, compares=True)


EXPERIMENTS = {
    "poison-digits": _Experiment(_digits, seeds=3),
    "poison-cifar": _Experiment(_cifar, ("data_root", "limit", "budget", "clean", "poisoned", "poison")),
    "canary-alice": _Experiment(_alice, ("data_root",), seeds=3),
    "forget-class-digits": _forget("forget-class-digits", "forget_class", seeds=3),
    "forget-random-digits": _forget("forget-random-digits", "share", seeds=3),
    "forget-class-cifar": _forget("forget-class-cifar", "data_root", "limit", "forget_class"),
    "forget-random-cifar": _forget("forget-random-cifar", "data_root", "limit", "share"),
    **{f"features-{name}": _Experiment(partial(_features, name), ("data_root",), seeds=20) for name in FEATURE_TABLES},
    "repair-mnist": _Experiment(_mnist, ("data_root", "noise", "noise_kind")),
}
COMPARING = [name for name, entry in EXPERIMENTS.items() if entry.compares]

# Options that both commands have.
DataRoot = Annotated[Path | None, typer.Option(help=DATA)]
Limit = Annotated[int | None, typer.Option(help="training images to use (CIFAR-10)")]
Epochs = Annotated[int | None, typer.Option(help="epochs of every training")]
ForgetClass = Annotated[str | None, typer.Option(help="name or number of the class to forget (forget-class-*)")]
Share = Annotated[float | None, typer.Option(help="of the training images to forget (forget-random-*)")]
Out = Annotated[Path, typer.Option(help="folder of all runs")]
Name = Annotated[
    str | None,
    typer.Option(help="folder of this run; experiment and time where not given; forget-*: goes on where it stopped"),
]
Progress = Annotated[bool, typer.Option(help="show progress bars")]


@app.command()
def run(
    experiment: Annotated[str, typer.Argument(help=_listed(EXPERIMENTS, "or"))] = "poison-digits",
    preset: Annotated[
        str | None,
        typer.Option(help="default, reference (published protocol), best (poison-cifar) or sweep (canary-alice)"),
    ] = None,
    seeds: Annotated[int, typer.Option(min=0, help="runs with different seeds; 0 for the experiment's own")] = 0,
    data_root: DataRoot = None,
    limit: Limit = None,
    epochs: Epochs = None,
    budget: Annotated[int | None, typer.Option(help="labels to flip (poison-cifar)")] = None,
    clean: Annotated[Path | None, typer.Option(help="checkpoint trained on clean labels (poison-cifar)")] = None,
    poisoned: Annotated[Path | None, typer.Option(help="checkpoint trained on poisoned labels (poison-cifar)")] = None,
    poison: Annotated[Path | None, typer.Option(help="poison of that checkpoint (.npz); looked for beside it")] = None,
    forget_class: ForgetClass = None,
    share: Share = None,
    sweep: Annotated[
        list[str] | None, typer.Option(help="values of a method's parameter to try, ssd.alpha=2,5,10 (forget-*)")
    ] = None,
    noise: Annotated[float | None, typer.Option(help="share of training points to spoil (repair-mnist)")] = None,
    noise_kind: Annotated[str | None, typer.Option(help="what is spoilt: labels or inputs (repair-mnist)")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="make the trial of this file again: trials/seed-*/*.json of a run of forget-*")
    ] = None,
    out: Out = Path("runs"),
    name: Name = None,
    progress: Progress = True,
) -> None:
    """Run an experiment; write result.json, the models and report.html to runs/NAME."""
    own: dict[str, Any] = {"limit": limit, "budget": budget, "clean": clean, "poisoned": poisoned, "poison": poison}
    own |= {"forget_class": forget_class, "share": share, "sweep": sweep or None}
    own |= {"noise": noise, "noise_kind": noise_kind}
    if recipe is not None:
        with _refusing("run --recipe"):
            held = {**own, "preset": preset, "seeds": seeds or None, "epochs": epochs}
            _repeat(recipe, held, out=out, name=name, root=data_root, progress=progress)
        return
    with _refusing(f"run {experiment}"):
        common = {"epochs": epochs, "preset": preset or "default", "progress": progress}
        study = _study(experiment, {"data_root": data_root, **own}, **common)
        _carry_out(study, experiment, seeds or EXPERIMENTS[experiment].seeds, out, name)


@app.command()
def compare(
    experiment: Annotated[str, typer.Argument(help=_listed(COMPARING, "or"))],
    methods: Annotated[str, typer.Option(help="names of methods, separated by commas, or all")] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="runs with different seeds")] = 3,
    data_root: DataRoot = None,
    limit: Limit = None,
    epochs: Epochs = None,
    forget_class: ForgetClass = None,
    share: Share = None,
    out: Out = Path("runs"),
    name: Name = None,
    progress: Progress = True,
) -> None:
    """Measure methods against retraining; write result.json, the models and report.html to runs/NAME."""
    own = {"data_root": data_root, "limit": limit, "forget_class": forget_class, "share": share}
    with _refusing(f"compare {experiment}"):
        if experiment in EXPERIMENTS and experiment not in COMPARING:
            raise ValueError(f"methods are compared with models that never saw some images, by {_listed(COMPARING)}")
        chosen = None if methods == "all" else [method.strip() for method in methods.split(",")]
        study = _study(experiment, own, methods=chosen, epochs=epochs, progress=progress)
        _carry_out(study, experiment, seeds, out, name)


def _carry_out(study: Any, experiment: str, seeds: int, out: Path, name: str | None) -> None:
    """Run a study, write what it found and show it."""
    from unlearnx.experiments import report

    folder = _folder(out, name, experiment)
    study.log = console.log
    result = study.run(list(range(seeds)), folder)
    result["command"] = _command()
    result["environment"] = report.environment()
    path = report.write(result, folder)
    console.print(report.table(result))
    console.print(f"Report: [bold]{path}[/]")


def _folder(out: Path, name: str | None, title: str) -> Path:
    return out / (name or f"{title}-{datetime.now():%Y%m%d-%H%M%S}")


def _repeat(file: Path, held: dict[str, Any], *, out: Path, name: str | None, **settings: Any) -> None:
    """Make a trial again and show its numbers beside the recorded ones; exits with 1 where they differ."""
    from unlearnx.experiments.evaluation import changed
    from unlearnx.experiments.forget import repeat
    from unlearnx.experiments.report.forget import comparison
    from unlearnx.experiments.run_store import read_trial

    for option in (option for option, value in held.items() if value is not None):
        raise ValueError(f"--{option.replace('_', '-')} has no place beside --recipe, which holds it already")
    recorded = read_trial(file)
    folder = _folder(out, name, f"repeat-{file.stem}")
    entry = repeat(recorded["recipe"], folder, beside=file.parent, log=console.log, **settings)
    other = changed(recorded, entry)
    console.print(comparison(recorded, entry, other))
    console.print(f"RunStore: [bold]{folder / 'trials'}[/]")
    if other:
        raise typer.Exit(1)


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

    with _refusing("unlearn"):
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
    console.print(report.audit_table(audit))
    if audit["warning"]:
        console.print(f"[yellow]{escape(audit['warning'])}[/]")
    console.print(f"Audit: [bold]{out / 'audit.html'}[/]")
    if not audit["applied"]:
        console.print(f"[red]Not applied[/]: {escape(audit['reason'])}", highlight=False)
        raise typer.Exit(1)


def _command() -> str:
    return shlex.join(["unlearnx", *sys.argv[1:]])


@contextmanager
def _refusing(command: str) -> Iterator[None]:
    """Say in a line what is wrong with the arguments of a command, and end it with exit status 2."""
    try:
        yield
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        console.print(f"[red]unlearnx {command}[/]: {escape(str(error))}", highlight=False)
        raise typer.Exit(2) from error


def main() -> None:
    """Entry point of the command ``unlearnx``."""
    app()
