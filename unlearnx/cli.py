"""The command line: ``unlearnx info``, ``run``, ``compare``, ``tune`` and ``unlearn``.

Results go to stdout; the log, progress and errors go to stderr.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

try:
    import typer
    from rich.table import Table
except ImportError as error:
    raise SystemExit(f"unlearnx: the command line needs pip install 'unlearnx[experiments]' ({error})") from error

from unlearnx import _interrupts, build_info
from unlearnx._cli import options
from unlearnx._cli.output import NOT_APPLIED, NOT_FORGOTTEN, Commands, Output, command_line
from unlearnx._cli.running import Running
from unlearnx._cli.studies import COMPARING, TUNING, carry_out, listed, repeat, search, study_of
from unlearnx._cli.study_options import with_options_of
from unlearnx._progress import progress_bar
from unlearnx.experiments.registry import STUDIES
from unlearnx.experiments.study import Prepared
from unlearnx.methods import METHODS

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    help="Make trained models forget, and measure how well that worked.",
    pretty_exceptions_enable=False,
)


@app.command()
def info(selftest: options.Selftest = False, quiet: options.Quiet = False, as_json: options.Json = False) -> None:
    """Show how unlearnx was built and what it sees on this machine."""
    output = Output("info", quiet=quiet, as_json=as_json)
    with output.ending():
        import torch

        rows: dict[str, Any] = {**build_info(), "torch_running": torch.__version__}
        rows["torch_threads"] = torch.get_num_threads()
        rows["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if not as_json:
            output.result(rows, _info_table(rows), verdict=[("unlearnx", rows["version"])] if quiet else [])
        if selftest:
            rows["selftest_passed"] = _selftest(output)
        if as_json:
            output.result(rows)
    if not rows.get("selftest_passed", True):
        raise typer.Exit(NOT_APPLIED)


def _selftest(output: Output) -> bool:
    """Run every op; with ``--quiet`` only what failed is shown, and the last line, which counts the failures."""
    from unlearnx import selftest

    lines: list[str] = []

    def show(line: str) -> None:
        lines.append(line)
        if not output.quiet or line.startswith("FAILED"):
            output.line(line)

    passed = selftest.run(show)
    if output.quiet and not output.as_json:
        output.line(lines[-1])
    return passed


def _info_table(rows: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None)
    for key, value in rows.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        table.add_row(key.replace("_", " "), "none" if shown in (None, "") else str(shown))
    return table


@app.command()
@with_options_of(STUDIES.values())
def run(
    experiment: Annotated[str, typer.Argument(help=listed(STUDIES, "or"))] = "poison-digits",
    seeds: options.OwnRuns = 0,
    data_root: options.DataRoot = None,
    recipe: options.Recipe = None,
    *,
    running: Running,
    **own: Any,
) -> None:
    """Run an experiment; write result.json, the models and report.html to runs/NAME."""
    output = running.output("run --recipe" if recipe is not None else f"run {experiment}")
    with output.ending():
        if recipe is not None:
            held = {**own, "seeds": seeds or None}
            repeat(output, recipe, held, running, root=data_root)
            return
        study = study_of(experiment, data_root, own, progress=running.shows_progress)
        carry_out(output, study, experiment, seeds or STUDIES[experiment].seeds, running)


@app.command()
@with_options_of((STUDIES[name] for name in COMPARING), leave_out=("sweep",))
def compare(
    experiment: Annotated[str, typer.Argument(help=listed(COMPARING, "or"))],
    methods: options.Methods = "all",
    seeds: options.Runs = 3,
    data_root: options.DataRoot = None,
    *,
    running: Running,
    **own: Any,
) -> None:
    """Measure methods against retraining; write result.json, the models and report.html to runs/NAME."""
    output = running.output(f"compare {experiment}")
    with output.ending():
        study = _comparing(experiment, methods, data_root, own, running)
        carry_out(output, study, experiment, seeds, running)


@app.command()
@with_options_of((STUDIES[name] for name in TUNING), leave_out=("sweep", "models"))
def tune(
    experiment: Annotated[str, typer.Argument(help=listed(TUNING, "or"))],
    methods: options.Methods = "all",
    trials: options.Trials = 8,
    data_root: options.DataRoot = None,
    *,
    running: Running,
    **own: Any,
) -> None:
    """Search learning rates and strengths of methods without test data; write tuned.json to runs/NAME.

    A tenth of the training data stands for test data, and the models have a seed of their own. Needs Optuna.
    """
    output = running.output(f"tune {experiment}")
    with output.ending():
        if experiment in COMPARING and experiment not in TUNING:
            raise ValueError(
                f"EXPERIMENT is {experiment!r}, which chooses the strengths of its methods by itself; expected one of "
                f"{listed(TUNING, 'or')}"
            )
        study = _comparing(experiment, methods, data_root, own, running)
        search(output, study, experiment, trials, running)


def _comparing(
    experiment: str, methods: str, data_root: Path | None, own: dict[str, Any], running: Running
) -> Prepared:
    """The study that compares these methods with a retrained model."""
    if experiment in STUDIES and experiment not in COMPARING:
        raise ValueError(
            f"EXPERIMENT is {experiment!r}, which has no retrained model to compare methods with; expected one of "
            f"{listed(COMPARING, 'or')}"
        )
    chosen = None if methods == "all" else [method.strip() for method in methods.split(",")]
    return study_of(experiment, data_root, own, methods=chosen, progress=running.shows_progress)


@app.command()
def unlearn(
    model: options.Model,
    data: options.Data,
    method: Annotated[str, typer.Option(help=f"{', '.join(METHODS)}, the name of a plug-in, or {options.OWN_METHOD}")],
    out: options.ResultFolder,
    weights: options.WeightsFile = None,
    forget: options.Forget = None,
    forget_class: options.ClassNumber = None,
    option: options.MethodOption = None,
    test: options.Test = None,
    retrained: options.Retrained = None,
    factors: options.FactorsFile = None,
    params: options.Params = None,
    lora: options.Lora = None,
    paraphrases: options.Paraphrases = None,
    refusals: options.Refusals = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    progress: options.Progress = True,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Make a model of your own forget; write its new weights and an audit.

    With JSON lines as --data, the model is a language model (hf:FOLDER, or hf:PACKAGE), and --forget names some of the
    lines; its folder, or an adapter's, and its tokenizer are written.

    Exit status: 0 where the model has forgotten, 1 where the method was not applied (the audit says why), 2 where it
    cannot be (an argument, a file or the model is wrong), 3 where it was applied and the model has not been shown to
    have forgotten, 130 on Ctrl-C.
    """
    output, progress = Output("unlearn", quiet=quiet, as_json=as_json), progress and not quiet
    with output.ending():
        with progress_bar("unlearn", None, progress):
            from unlearnx._cli.unlearning import unlearn_as_asked
            from unlearnx.experiments import report

            audit = unlearn_as_asked(
                model=model,
                weights=weights,
                data=data,
                forget=forget,
                forget_class=forget_class,
                test=test,
                retrained=retrained,
                lora=lora,
                paraphrases=paraphrases,
                refusals=refusals,
                method=method,
                option=option,
                factors=factors,
                params=params,
                seed=seed,
                batch_size=batch_size,
                progress=progress,
                out=out,
                device=device,
                command=command_line(),
                log=output.log,
            )
        verdict = [("Verdict", audit["evidence"]["sentence"]), *(("Note", note) for note in audit["notes"])]
        verdict += [("Warning", audit["warning"]), ("Not applied", None if audit["applied"] else audit["reason"])]
        shown = [(title, text) for title, text in verdict if text]
        output.result(audit, report.audit_table(audit), verdict=[*shown, ("Audit", out / "audit.html")])
    if not audit["applied"]:
        raise typer.Exit(NOT_APPLIED)
    if audit["forgotten"] != "yes":
        raise typer.Exit(NOT_FORGOTTEN)


def main() -> None:
    """Entry point of the command ``unlearnx``."""
    _interrupts.remember()
    app()
