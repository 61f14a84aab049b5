"""The command line: ``unlearnx info``, ``run``, ``compare`` and ``unlearn``.

Results go to stdout; the log, progress and errors go to stderr.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text
except ImportError as error:
    raise SystemExit(f"unlearnx: the command line needs pip install 'unlearnx[experiments]' ({error})") from error

from unlearnx import build_info
from unlearnx._checks import check_at_least_one
from unlearnx._progress import progress_bar, stderr_console
from unlearnx.data import FEATURE_TABLES
from unlearnx.methods import METHODS

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Make trained models forget, and measure how well that worked.",
    pretty_exceptions_enable=False,
)

NOVEL = "alice_in_wonderland.txt"
DIGITS = "mnist-10k.npz"
DATA_HELP = (
    "folder with the experiment's data, or the file itself; where not given, the folder that $UNLEARNX_DATA names. "
    "CIFAR-10 must be given: its folder or archive"
)
FUNCTION_HELP = "module:function, found in the current directory or among the installed packages; the function "


def _listed(names: Iterable[str], word: str = "and") -> str:
    *most, last = names
    return f"{', '.join(most)} {word} {last}" if most else last


Progress = Annotated[bool, typer.Option(help="show progress on stderr")]
Quiet = Annotated[bool, typer.Option("--quiet", help="print only errors, the verdict and where the results are")]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON to stdout; the log goes to stderr")]


_PLAIN: dict[str, Any] = {"highlight": False, "soft_wrap": True}  # a line of text is printed as it is


class _Output:
    """What a command writes: results to stdout, its log and errors to stderr.

    Args:
        command: its name, for errors.
        quiet: write errors and the verdict, but no log and no tables.
        as_json: write the result as JSON to stdout, and nothing else there.
    """

    def __init__(self, command: str, *, quiet: bool, as_json: bool):
        self.command, self.quiet, self.as_json = command, quiet, as_json
        self._stdout = sys.stdout

    def log(self, line: str) -> None:
        """Write a line to stderr, with the time."""
        if not self.quiet:
            stderr_console().print(Text(f"{datetime.now():%H:%M:%S}", "dim"), line, markup=False, **_PLAIN)

    def result(self, record: Any, *tables: RenderableType, verdict: dict[str, Any]) -> None:
        """Write what the command found: with ``--json`` the record, otherwise the tables and the verdict below them.

        Args:
            record: everything that was found, made of values that JSON has.
            tables: what a person is shown of it; nothing with ``--quiet``.
            verdict: lines that are shown even with ``--quiet``: values by their titles.
        """
        if self.as_json:
            from unlearnx.experiments.runs import to_json

            print(to_json(record), file=self._stdout)
            return
        console = Console(file=self._stdout)
        for table in () if self.quiet else tables:
            console.print(table)
        for title, value in verdict.items():
            console.print(Text(f"{title}: ").append(str(value), "bold"), **_PLAIN)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Say in one line on stderr why a command stops early: exit status 2 for a wrong argument, 130 for Ctrl-C.

        With ``--json``, whatever else is printed in the meantime (say by a user's own module) goes to stderr.
        """
        try:
            with redirect_stdout(sys.stderr) if self.as_json else nullcontext():
                yield
        except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
            self._fail(str(error))
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            self._fail("interrupted")
            raise typer.Exit(130) from error

    def _fail(self, reason: str) -> None:
        line = Text(f"unlearnx {self.command}", "red").append(f": {reason}", "default")
        Console(stderr=True).print(line, **_PLAIN)


@app.command()
def info(
    selftest: Annotated[
        bool, typer.Option("--selftest", help="run every op on every device; status 1 if one fails")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Show how unlearnx was built and what it sees on this machine."""
    output = _Output("info", quiet=quiet, as_json=as_json)
    with output.ending():
        import torch

        rows: dict[str, Any] = {**build_info(), "torch_running": torch.__version__}
        rows["torch_threads"] = torch.get_num_threads()
        rows["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if not as_json:
            output.result(rows, _info_table(rows), verdict={"unlearnx": rows["version"]} if quiet else {})
        if selftest:
            rows["selftest_passed"] = _selftest(output)
        if as_json:
            output.result(rows, verdict={})
    if not rows.get("selftest_passed", True):
        raise typer.Exit(1)


def _selftest(output: _Output) -> bool:
    """Run every op; with ``--quiet`` only what failed is shown, and the last line, which counts the failures."""
    from unlearnx import selftest

    lines: list[str] = []

    def show(line: str) -> None:
        lines.append(line)
        if output.as_json:
            output.log(line)
        elif not output.quiet or line.startswith("FAILED"):
            print(line)

    passed = selftest.run(show)
    if output.quiet and not output.as_json:
        print(lines[-1])
    return passed


def _info_table(rows: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None)
    for key, value in rows.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        table.add_row(key.replace("_", " "), "none" if shown in (None, "") else str(shown))
    return table


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


@dataclass(frozen=True)
class _Experiment:
    """An experiment as the command line offers it.

    Attributes:
        study: builds the study from its own options and those that every experiment has: epochs, preset, progress.
        options: names of its own options.
        seeds: number of runs where none is given.
        compares: whether `compare` offers it: it takes names of methods and measures them against retraining.
    """

    study: Callable[..., Any]
    options: tuple[str, ...] = ()
    seeds: int = 1
    compares: bool = False


def _forget(name: str, *options: str, seeds: int = 1) -> _Experiment:
    """A study of forgetting, with a few methods where none are named."""

    def study(**settings: Any) -> Any:
        from unlearnx.experiments.forget import DEFAULT_METHODS, STUDIES

        if "data_root" in options:
            settings["root"] = _cifar_root(settings.pop("data_root", None))
        return STUDIES[name](**{"methods": DEFAULT_METHODS, **settings})

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

# Options that `run` and `compare` share.
DataRoot = Annotated[Path | None, typer.Option(help=DATA_HELP)]
Limit = Annotated[int | None, typer.Option(help="training images to use (CIFAR-10)")]
Epochs = Annotated[int | None, typer.Option(help="epochs of each training")]
ForgetClass = Annotated[str | None, typer.Option(help="name or number of the class to forget (forget-class-*)")]
Share = Annotated[float | None, typer.Option(help="share of the training images to forget (forget-random-*)")]
Out = Annotated[Path, typer.Option(help="folder that holds all runs")]
Name = Annotated[
    str | None,
    typer.Option(help="folder of this run; by default, experiment and time. A forget-* run goes on where it stopped"),
]


@app.command()
def run(
    experiment: Annotated[str, typer.Argument(help=_listed(EXPERIMENTS, "or"))] = "poison-digits",
    preset: Annotated[
        str | None,
        typer.Option(help="default, reference (published protocol), best (poison-cifar) or sweep (canary-alice)"),
    ] = None,
    seeds: Annotated[int, typer.Option(min=0, help="number of runs, a seed each; 0 for the experiment's own")] = 0,
    data_root: DataRoot = None,
    limit: Limit = None,
    epochs: Epochs = None,
    budget: Annotated[int | None, typer.Option(help="labels to flip (poison-cifar)")] = None,
    clean: Annotated[Path | None, typer.Option(help="checkpoint trained on clean labels (poison-cifar)")] = None,
    poisoned: Annotated[Path | None, typer.Option(help="checkpoint trained on poisoned labels (poison-cifar)")] = None,
    poison: Annotated[Path | None, typer.Option(help="wrong labels of --poisoned (.npz); looked for beside it")] = None,
    forget_class: ForgetClass = None,
    share: Share = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="values to try for a method's parameter: ssd.alpha=2,5,10 (forget-*)"),
    ] = None,
    noise: Annotated[float | None, typer.Option(help="share of the training samples to spoil (repair-mnist)")] = None,
    noise_kind: Annotated[str | None, typer.Option(help="what to spoil: labels or inputs (repair-mnist)")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="make one trial again: a file trials/seed-*/*.json of a forget-* run")
    ] = None,
    out: Out = Path("runs"),
    name: Name = None,
    progress: Progress = True,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run an experiment; write result.json, the models and report.html to runs/NAME."""
    own: dict[str, Any] = {"limit": limit, "budget": budget, "clean": clean, "poisoned": poisoned, "poison": poison}
    own |= {"forget_class": forget_class, "share": share, "sweep": sweep or None}
    own |= {"noise": noise, "noise_kind": noise_kind}
    command = "run --recipe" if recipe is not None else f"run {experiment}"
    output, progress = _Output(command, quiet=quiet, as_json=as_json), progress and not quiet
    with output.ending():
        if recipe is not None:
            held = {**own, "preset": preset, "seeds": seeds or None, "epochs": epochs}
            _repeat(output, recipe, held, out=out, name=name, root=data_root, progress=progress)
            return
        common = {"epochs": epochs, "preset": preset or "default", "progress": progress}
        study = _study(experiment, {"data_root": data_root, **own}, **common)
        _carry_out(
            output, study, experiment, seeds or EXPERIMENTS[experiment].seeds, _folder(out, name, experiment), progress
        )


@app.command()
def compare(
    experiment: Annotated[str, typer.Argument(help=_listed(COMPARING, "or"))],
    methods: Annotated[str, typer.Option(help="names of methods, separated by commas, or all")] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="number of runs, a seed each")] = 3,
    data_root: DataRoot = None,
    limit: Limit = None,
    epochs: Epochs = None,
    forget_class: ForgetClass = None,
    share: Share = None,
    out: Out = Path("runs"),
    name: Name = None,
    progress: Progress = True,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure methods against retraining; write result.json, the models and report.html to runs/NAME."""
    own = {"data_root": data_root, "limit": limit, "forget_class": forget_class, "share": share}
    output, progress = _Output(f"compare {experiment}", quiet=quiet, as_json=as_json), progress and not quiet
    with output.ending():
        if experiment in EXPERIMENTS and experiment not in COMPARING:
            raise ValueError(
                f"EXPERIMENT is {experiment!r}, which has no retrained model to compare methods with; expected one of "
                f"{_listed(COMPARING, 'or')}"
            )
        chosen = None if methods == "all" else [method.strip() for method in methods.split(",")]
        study = _study(experiment, own, methods=chosen, epochs=epochs, progress=progress)
        _carry_out(output, study, experiment, seeds, _folder(out, name, experiment), progress)


def _carry_out(output: _Output, study: Any, experiment: str, seeds: int, folder: Path, progress: bool) -> None:
    """Run a study, write what it found and show it."""
    from unlearnx.experiments import report
    from unlearnx.experiments.run_folder import claimed

    study.log = output.log
    output.log(f"results go to {folder}")
    with claimed(folder):
        with progress_bar(experiment, None, progress):
            result = study.run(list(range(seeds)), folder)
        result["command"] = _command()
        result["environment"] = report.environment()
        path = report.write(result, folder)
    output.result({**result, "report": str(path)}, report.table(result), verdict={"Report": path})


def _folder(out: Path, name: str | None, title: str) -> Path:
    if name is not None and (name in ("", ".", "..") or Path(name).name != name or "\0" in name):
        raise ValueError(f"--name is {name!r}, expected the name of a folder in --out, without separators")
    return out / (name or f"{title}-{datetime.now():%Y%m%d-%H%M%S}")


def _repeat(
    output: _Output, file: Path, held: dict[str, Any], *, out: Path, name: str | None, progress: bool, **settings: Any
) -> None:
    """Make a trial again and show its numbers beside the recorded ones; exits with 1 where they differ."""
    from unlearnx.experiments.evaluation import changed
    from unlearnx.experiments.forget import repeat
    from unlearnx.experiments.report.forget import comparison
    from unlearnx.experiments.run_folder import claimed
    from unlearnx.experiments.run_store import read_trial

    for option in (option for option, value in held.items() if value is not None):
        raise ValueError(f"--{option.replace('_', '-')} cannot be given with --recipe: the recipe says it already")
    recorded = read_trial(file)
    folder = _folder(out, name, f"repeat-{file.stem}")
    with claimed(folder), progress_bar(f"repeating {file.stem}", None, progress):
        repeated = repeat(recorded["recipe"], folder, beside=file.parent, log=output.log, progress=progress, **settings)
    different = changed(recorded, repeated)
    output.result(
        {"recorded": recorded, "repeated": repeated, "different": different},
        comparison(recorded, repeated, different),
        verdict={"Measures that differ": ", ".join(different) or "none", "Trials": folder / "trials"},
    )
    if different:
        raise typer.Exit(1)


def _study(experiment: str, own: dict[str, Any], **common: Any) -> Any:
    """The study that was asked for; refuses options that are those of other experiments."""
    if experiment not in EXPERIMENTS:
        raise ValueError(f"EXPERIMENT is {experiment!r}, expected one of {_listed(EXPERIMENTS, 'or')}")
    check_at_least_one(
        **{f"--{name}": value for name, value in {**own, **common}.items() if name in ("epochs", "limit", "budget")}
    )
    given = {option: value for option, value in own.items() if value is not None}
    for option in given:
        if option not in EXPERIMENTS[experiment].options:
            owners = [name for name, other in EXPERIMENTS.items() if option in other.options]
            raise ValueError(f"--{option.replace('_', '-')} is not an option of {experiment}, but of {_listed(owners)}")
    return EXPERIMENTS[experiment].study(**given, **common)


@app.command()
def unlearn(
    model: Annotated[str, typer.Option(help=FUNCTION_HELP + "builds the model")],
    weights: Annotated[Path, typer.Option(help="file of its weights: safetensors, or a state dict by torch.save")],
    data: Annotated[str, typer.Option(help=FUNCTION_HELP + "returns training data: a Dataset, a DataLoader or (x, y)")],
    method: Annotated[str, typer.Option(help=_listed(METHODS, "or"))],
    out: Annotated[Path, typer.Option(help="folder for the new weights, audit.json and audit.html")],
    forget: Annotated[
        Path | None, typer.Option(help="file of the indices to forget: .npy, or text with one on each line")
    ] = None,
    forget_class: Annotated[int | None, typer.Option(help="number of the class to forget")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="name=value, for the method; repeatable; an unknown name lists them all"),
    ] = None,
    test: Annotated[str | None, typer.Option(help="test data, like --data; needed for membership attacks")] = None,
    retrained: Annotated[
        Path | None, typer.Option(help="weights of a model trained without the samples to forget, to compare with")
    ] = None,
    params: Annotated[
        str | None,
        typer.Option(help="parameters that may change: last:6, or names with commas; by default all"),
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of every random choice")] = 0,
    batch_size: Annotated[int | None, typer.Option(help="samples in one pass")] = None,
    device: Annotated[str | None, typer.Option(help="such as cpu or cuda:1; by default a GPU if there is one")] = None,
    progress: Progress = True,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make a model of your own forget; write its new weights and an audit.

    Exit status: 0 where the method was applied, 1 where it was not (the audit says why), 2 where an argument is wrong.
    """
    output, progress = _Output("unlearn", quiet=quiet, as_json=as_json), progress and not quiet
    with output.ending(), ExitStack() as held, progress_bar("unlearn", None, progress):
        from unlearnx.experiments import arguments, report
        from unlearnx.experiments import unlearn as run_unlearn
        from unlearnx.experiments.run_folder import claimed

        chosen = arguments.parameters(params)
        how = arguments.build_method(
            method, option or [], params=chosen, seed=seed, batch_size=batch_size, progress=progress
        )
        held.enter_context(claimed(out))
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
            log=output.log,
        )
    verdict = {"Warning": audit["warning"], "Not applied": None if audit["applied"] else audit["reason"]}
    shown = {title: text for title, text in verdict.items() if text}
    output.result(audit, report.audit_table(audit), verdict={**shown, "Audit": out / "audit.html"})
    if not audit["applied"]:
        raise typer.Exit(1)


def _command() -> str:
    return shlex.join(["unlearnx", *sys.argv[1:]])


def main() -> None:
    """Entry point of the command ``unlearnx``."""
    app()
