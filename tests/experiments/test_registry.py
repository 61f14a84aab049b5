"""Every study is offered as its signature says, and one that is registered needs nothing else."""

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypedDict

import pytest
import typer
from typer.testing import CliRunner
from typing_extensions import Unpack

from unlearnx import cli
from unlearnx._cli import options
from unlearnx._cli.output import Commands
from unlearnx._cli.study_options import with_options_of
from unlearnx.experiments import forget_class_digits
from unlearnx.experiments.forget.studies import FORGETTING
from unlearnx.experiments.registry import STUDIES
from unlearnx.experiments.report import poison
from unlearnx.experiments.study import Data, Epochs, Prepared, Study

SHARED = {"preset", "epochs"}


@pytest.mark.parametrize("study", STUDIES.values(), ids=list(STUDIES))
def test_every_study(study):
    """Its function takes its data, its options and what the command line gives to all."""
    assert STUDIES[study.name] is study
    data = ["path"] if study.needs else []
    common = {"progress": True} | ({"methods": None} if study.compared is not None else {})
    signature = inspect.signature(study.make)
    signature.bind(*data, **dict.fromkeys(study.options), **common)
    assert study.options.keys() >= SHARED
    assert all(kind in options.OF_STUDIES and text for kind, text in study.options.values())
    assert study.seeds > 0


def test_commands_have_the_options_of_their_studies():
    own = {"experiment", "seeds", "data_root", "recipe", "out", "name", "progress", "quiet", "as_json"}
    offered = {name for study in STUDIES.values() for name in study.options}
    assert inspect.signature(cli.run).parameters.keys() == own | offered
    compared = {name for study in STUDIES.values() if study.compared is not None for name in study.options}
    taken = inspect.signature(cli.compare).parameters.keys()
    assert taken == (own - {"recipe"} | {"methods"} | compared) - {"sweep"}


def test_studies_of_forgetting_share_their_options():
    shared = {"epochs", "sweep", "preset"}
    for study in FORGETTING:
        assert study.options.keys() >= shared
        assert {name: study.options[name] for name in shared - {"preset"}} == {
            name: FORGETTING[0].options[name] for name in shared - {"preset"}
        }
    with pytest.raises(TypeError, match="unexpected keyword argument 'device'"):
        forget_class_digits(device="cpu")


class Counting(Prepared):
    """A study that says what it was made of."""

    def __init__(self, *values):
        self.values = values

    def room(self, seeds):
        return 0

    def run(self, seeds, folder):
        return {"experiment": "counting", "values": self.values, "seeds": seeds}


class Shared(TypedDict, total=False):
    """What other studies may have too."""

    epochs: Epochs


def counting(
    root: Path,
    *,
    width: Annotated[int | None, "how wide"] = None,
    part: Annotated[float, "how much"] = 0.5,
    kind: Annotated[str | int, "of which kind"] = "plain",
    words: Annotated[Sequence[str], "which words"] = (),
    progress: bool = True,
    **options: Unpack[Shared],
):
    return Counting(str(root), width, part, kind, list(words), options.get("epochs"), progress)


@dataclass
class Shown:
    """What several commands may show."""

    progress: options.Progress = True


def test_a_study_is_registered_by_one_entry(monkeypatch, tmp_path):
    study = Study("counting", counting, poison.page, poison.table, needs=Data("a folder"), seeds=2)
    monkeypatch.setitem(STUDIES, "counting", study)
    app = typer.Typer(cls=Commands)

    @app.command()
    @with_options_of([study, STUDIES["poison-digits"]], leave_out=["preset"])
    def run(experiment: str, *, shown: Shown, **own):
        prepared = cli.study_of(experiment, tmp_path, own, progress=shown.progress)
        print(json.dumps(prepared.run([0], tmp_path)))

    @app.command()
    def other():
        """So that `run` has to be named."""

    def called(*words):
        return CliRunner().invoke(app, ["run", *map(str, words)])

    given = ("--width", 3, "--part", 0.25, "--kind", "x", "--words", "a", "--words", "b", "--no-progress")
    assert json.loads(called("counting", *given).stdout)["values"] == [
        *(str(tmp_path), 3, 0.25, "x", ["a", "b"], None, False),
    ]
    assert json.loads(called("counting").stdout)["values"] == [str(tmp_path), None, 0.5, "plain", [], None, True]
    for words in (("--width", 0), ("--part", 1.5), ("--kind", ""), ("--words", " "), ("--preset", "x")):
        result = called("counting", *words)
        assert (result.exit_code, result.stdout) == (2, "")
        assert words[0] in result.stderr
    help_text = " ".join(called("--help").stdout.split())
    assert "how wide (counting)" in help_text
    assert "epochs of each training (" not in help_text
