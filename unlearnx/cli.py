"""The command line: ``unlearnx info`` and ``unlearnx run``."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
    from rich.console import Console
    from rich.table import Table
except ImportError as error:
    raise SystemExit(f"unlearnx: the command line needs pip install 'unlearnx[experiments]' ({error})") from error

from unlearnx import build_info

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
console = Console()


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


@app.command()
def run(
    experiment: Annotated[str, typer.Argument(help="poison-digits or poison-cifar")] = "poison-digits",
    preset: Annotated[str, typer.Option(help="default, reference (published protocol) or best")] = "default",
    seeds: Annotated[int, typer.Option(min=0, help="runs with different seeds; 0 for the experiment's own")] = 0,
    data_root: Annotated[Path | None, typer.Option(help="folder or archive of CIFAR-10")] = None,
    limit: Annotated[int | None, typer.Option(help="training images to use")] = None,
    epochs: Annotated[int | None, typer.Option(help="epochs of every training")] = None,
    budget: Annotated[int | None, typer.Option(help="labels to flip")] = None,
    clean: Annotated[Path | None, typer.Option(help="checkpoint trained on clean labels")] = None,
    poisoned: Annotated[Path | None, typer.Option(help="checkpoint trained on poisoned labels")] = None,
    poison: Annotated[Path | None, typer.Option(help="poison of that checkpoint (.npz); looked for beside it")] = None,
    out: Annotated[Path, typer.Option(help="folder of all runs")] = Path("runs"),
    name: Annotated[str | None, typer.Option(help="folder of this run; experiment and time where not given")] = None,
    progress: Annotated[bool, typer.Option(help="show progress bars")] = True,
) -> None:
    """Run an experiment; write result.json, the models and report.html to runs/NAME."""
    from unlearnx.experiments import report

    try:
        study = _study(experiment, preset, data_root, limit, epochs, budget, clean, poisoned, poison, progress)
        folder = out / (name or f"{experiment}-{datetime.now():%Y%m%d-%H%M%S}")
        study.log = console.log
        result = study.run(list(range(seeds or (3 if experiment == "poison-digits" else 1))), folder)
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        console.print(f"[red]unlearnx run {experiment}[/]: {error}", highlight=False)
        raise typer.Exit(2) from error
    result["command"] = " ".join(["unlearnx", *sys.argv[1:]])
    result["environment"] = report.environment()
    path = report.write(result, folder)
    console.print(report.table(result))
    console.print(f"Report: [bold]{path}[/]")


def _study(experiment, preset, data_root, limit, epochs, budget, clean, poisoned, poison, progress):
    from unlearnx.experiments import Checkpoints, poison_cifar, poison_digits

    if experiment == "poison-digits":
        foreign = {"--data-root": data_root, "--limit": limit, "--budget": budget, "--clean": clean}
        given = [name for name, value in {**foreign, "--poisoned": poisoned, "--poison": poison}.items() if value]
        if given:
            raise ValueError(f"{given[0]} belongs to poison-cifar")
        return poison_digits(epochs=epochs, preset=preset, progress=progress)
    if experiment != "poison-cifar":
        raise ValueError("no such experiment; there are poison-digits and poison-cifar")
    if data_root is None:
        raise ValueError("--data-root is missing: the folder or archive of CIFAR-10")
    if (clean is None) != (poisoned is None):
        raise ValueError("--clean and --poisoned come together")
    checkpoints = Checkpoints.find(clean, poisoned, poison) if clean and poisoned else None
    return poison_cifar(
        data_root,
        limit=limit,
        epochs=epochs,
        budget=budget,
        preset=preset,
        checkpoints=checkpoints,
        progress=progress,
    )


def main() -> None:
    """Entry point of the command ``unlearnx``."""
    app()
