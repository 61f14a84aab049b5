"""The options of the commands. Every kind of value has one check, which is made before a command does any work."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from unlearnx._checks import check_at_least_one

MAX_COUNT = 10**9  # of epochs, samples, runs: beyond is a slip of the hand, and beyond 2^63 no integer of torch
MAX_RUNS = 10_000
MAX_SEED = 2**32 - 1  # of NumPy's and scikit-learn's generators
MAX_NAME_BYTES = 255  # of a file system
DATA_HELP = (
    "folder with the experiment's data, or the file itself; where not given, the folder that $UNLEARNX_DATA names. "
    "CIFAR-10 and CIFAR-100 must be given: their folder or archive"
)
OWN_METHOD = "module:Method for one of your own"
FUNCTION_HELP = "module:function, found in the current directory or among the installed packages; the function "


def _checked(check: Callable[[str, Any], None]) -> Callable[[typer.CallbackParam, Any], Any]:
    """The check of an option's value as typer calls it; a value that is not given is not checked."""

    def callback(param: typer.CallbackParam, value: Any) -> Any:
        if value is not None:
            check(max(param.opts, key=len), value)
        return value

    return callback


def _at_most(limit: int) -> Callable[[str, int], None]:
    def check(option: str, value: int) -> None:
        check_at_least_one(**{option: value})
        if value > limit:
            raise ValueError(f"{option} is {value}, expected at most {limit:,}")

    return check


def _check_share(option: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{option} is {value}, expected a number between 0 and 1")


def _check_from_zero(limit: int) -> Callable[[str, int], None]:
    def check(option: str, value: int) -> None:
        if not 0 <= value <= limit:
            raise ValueError(f"{option} is {value}, expected an integer from 0 to {limit:,}")

    return check


def _check_name(option: str, value: str) -> None:
    separators = [s for s in (os.sep, os.altsep, "\0") if s and s in value]
    if value.strip() in ("", ".", "..") or separators or len(os.fsencode(value)) > MAX_NAME_BYTES:
        raise ValueError(f"{option} is {value!r}, expected the name of a folder within --out, without {os.sep}")


def _check_word(option: str, value: str | list[str]) -> None:
    for word in [value] if isinstance(value, str) else value:
        if not word.strip():
            raise ValueError(f"{option} is empty")


def _check_path(option: str, value: Path) -> None:
    if "\0" in str(value) or len(os.fsencode(value.name)) > MAX_NAME_BYTES:
        raise ValueError(f"{option}: {str(value)[:MAX_NAME_BYTES]!r} is no path")


def _count(text: str, limit: int = MAX_COUNT) -> Any:
    return typer.Option(help=text, callback=_checked(_at_most(limit)))


def _share(text: str) -> Any:
    return typer.Option(help=text, callback=_checked(_check_share))


def _word(text: str) -> Any:
    return typer.Option(help=text, callback=_checked(_check_word))


def _path(text: str) -> Any:
    return typer.Option(help=text, callback=_checked(_check_path))


def _whole(text: str, limit: int = MAX_COUNT) -> Any:
    return typer.Option(help=text, callback=_checked(_check_from_zero(limit)))


# Of all commands.
Progress = Annotated[bool, typer.Option(help="show progress on stderr")]
Quiet = Annotated[bool, typer.Option("--quiet", help="print only errors, the verdict and where the results are")]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON to stdout; the log goes to stderr")]
Selftest = Annotated[bool, typer.Option("--selftest", help="run every op on every device; status 1 if one fails")]

# Of `run`, `compare` and `tune`, besides those of the studies.
DataRoot = Annotated[Path | None, _path(DATA_HELP)]
Out = Annotated[Path, _path("folder that holds all runs")]
Name = Annotated[
    str | None,
    typer.Option(
        help="folder of this run; by default, experiment and time. A forget-* run goes on where it stopped",
        callback=_checked(_check_name),
    ),
]
Runs = Annotated[int, _count("number of runs, a seed each", MAX_RUNS)]
OwnRuns = Annotated[int, _whole("number of runs, a seed each; 0 for the experiment's own", MAX_RUNS)]
Methods = Annotated[str, _word(f"names of methods, separated by commas, {OWN_METHOD}, or all those of the study")]
Trials = Annotated[int, _count("trials of each method", MAX_RUNS)]
Recipe = Annotated[Path | None, _path("make one trial again: a file trials/seed-*/*.json of a forget-* run")]

# Of `unlearn`.
Model = Annotated[str, _word(FUNCTION_HELP + "builds the model; or hf:FOLDER, a HuggingFace model")]
WeightsFile = Annotated[
    Path | None,
    _path("its weights: safetensors, a file by torch.save, or an index of several; by default those in hf:FOLDER"),
]
Data = Annotated[
    str,
    _word(
        f"{FUNCTION_HELP}returns training data: a Dataset, a DataLoader, (x, y) or a mapping; or FILE.jsonl, texts for "
        "a language model"
    ),
]
ResultFolder = Annotated[Path, _path("folder for the new weights, audit.json and audit.html")]
Forget = Annotated[
    Path | None,
    _path("what to forget: a file of indices, .npy or text with one on each line; or FILE.jsonl, lines of the texts"),
]
Lora = Annotated[int | None, _count("change a fresh adapter of this rank alone (texts)")]
ClassNumber = Annotated[int | None, _whole("number of the class to forget")]
MethodOption = Annotated[
    list[str] | None, _word("name=value, for the method; repeatable; an unknown name lists them all")
]
Test = Annotated[str | None, _word("test data, like --data; needed for membership attacks")]
Retrained = Annotated[
    Path | None,
    _path("weights of a model trained without the samples to forget, to compare with; of texts, its folder"),
]
Paraphrases = Annotated[
    Path | None, _path("texts to forget in other words, as JSON lines, which are measured as these are")
]
Refusals = Annotated[
    Path | None,
    _path('answers that decline, as JSON lines {"text"}, for the texts to forget; idk has some of its own'),
]
FactorsFile = Annotated[
    Path | None, _path("Kronecker factors of the training data, by Factors.save; no pass is then taken over what stays")
]
Params = Annotated[str | None, _word("parameters that may change: last:6, or names with commas; by default all")]
Seed = Annotated[int, _whole("seed of every random choice", MAX_SEED)]
BatchSize = Annotated[int | None, _count("samples in one pass")]
Device = Annotated[str | None, _word("such as cpu or cuda:1; by default a GPU if there is one")]

# Of a study, by the type in its signature.
OF_STUDIES: dict[Any, Callable[[str], Any]] = {
    int: lambda text: Annotated[int | None, _count(text)],
    float: lambda text: Annotated[float | None, _share(text)],
    str: lambda text: Annotated[str | None, _word(text)],
    Path: lambda text: Annotated[Path | None, _path(text)],
    Sequence[str]: lambda text: Annotated[list[str] | None, _word(text)],
}
