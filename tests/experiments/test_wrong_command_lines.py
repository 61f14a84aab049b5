"""What is wrong with a command line is said in one sentence, before any work, with exit status 2."""

import os
import random
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from unlearnx import cli
from unlearnx._cli import studies
from unlearnx.experiments import arguments

COMMANDS = {name: getattr(cli, name) for name in ("info", "run", "compare", "tune", "unlearn")}
REQUIRED = {
    "run": [],
    "compare": ["forget-class-digits"],
    "tune": ["forget-class-digits"],
    "info": [],
    "unlearn": ["--model", "m:f", "--weights", "w", "--data", "d:f", "--method", "ssd", "--out", "o"],
}


def options(*kinds):
    """Commands with their options of these types."""
    return [
        (command, f"--{name.replace('_', '-')}")
        for command, function in COMMANDS.items()
        for name, hint in typing.get_type_hints(function).items()
        if name not in ("return", "experiment") and set(kinds) & {hint, *typing.get_args(hint)}
    ]


NUMBERS = options(int, float)
ZERO = [("run", "--seeds"), ("unlearn", "--forget-class"), ("unlearn", "--seed")]  # take zero


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch, tmp_path):
    """A study that is built, or a user's function that is called, fails the test."""

    def worked(*_, **__):
        pytest.fail("work was begun")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(studies, "study_of", worked)
    monkeypatch.setattr(cli, "study_of", worked)
    monkeypatch.setattr(arguments, "factory", worked)


def refused(*words):
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert isinstance(result.exception, SystemExit), (words, result.exception)
    assert (result.exit_code, result.stdout) == (2, ""), (words, result.output)
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert os.listdir() == []
    return result.stderr


def test_the_options_with_numbers_are_known():
    assert {option for _, option in NUMBERS} == {
        *(
            "--seeds",
            "--trials",
            "--limit",
            "--epochs",
            "--budget",
            "--share",
            "--noise",
            "--forget-class",
            "--seed",
            "--batch-size",
            "--lora",
            "--authors",
            "--forget",
            "--blocks",
            "--strengths",
            "--questions",
        )
    }


@pytest.mark.parametrize("value", ["-1", "0", "1e400", "nan", "inf", "-inf", "three", "1,5", "9" * 30, ""])
@pytest.mark.parametrize(("command", "option"), NUMBERS)
def test_numbers_out_of_range(command, option, value):
    if value == "0" and (command, option) in ZERO:
        value = "-0.5"
    message = refused(command, *REQUIRED[command], f"{option}={value}")
    assert message.startswith(f"unlearnx {command}: ")
    assert option in message


@pytest.mark.parametrize("command", ["run", "compare"])
@pytest.mark.parametrize("name", ["../../x", "..", ".", "", " ", "a/b", "/tmp/x", "x/", "n" * 256, "ü" * 128])
def test_a_name_stays_within_the_folder(command, name):
    assert refused(command, *REQUIRED[command], "--name", name).startswith(f"unlearnx {command}: --name is ")


@pytest.mark.parametrize(("command", "option"), options(str))
def test_empty_words(command, option):
    message = refused(command, *REQUIRED[command], option, "")
    assert option in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rum"], "unlearnx: No such command 'rum'"),
        (["run", "--epohcs", "3"], "unlearnx run: No such option: --epohcs"),
        (["run", "--epochs"], "unlearnx run: Option '--epochs' requires an argument."),
        (["run", "poison-digits", "again"], "unlearnx run: Got unexpected extra argument"),
        (["compare"], "unlearnx compare: Missing argument"),
        (["unlearn"], "unlearnx unlearn: Missing option '--model'."),
        (["unlearn", "--quiet=3"], "--quiet"),
        (["info", "--selftest", "3"], "unlearnx info: Got unexpected extra argument"),
    ],
)
def test_what_typer_refuses(words, message):
    assert message in refused(*words)


def test_300_random_command_lines():
    """Words that are options, values of them and nonsense, drawn at random: each ends with one sentence."""
    draw = random.Random(0)
    names = sorted({option for _, option in options(int, float, str, bool, Path)})
    values = [
        "",
        "0",
        "-1",
        "nan",
        "x",
        "1e99",
        "../..",
        "\N{SNOWMAN}",
        "a:b",
        "last:0",
        "/dev/null",
        "=",
        "--",
        "9" * 40,
    ]
    wrong = 0
    while wrong < 300:
        words = [draw.choice([*COMMANDS, "", "rum"])]
        for _ in range(draw.randrange(1, 6)):
            words += draw.choice(
                [[draw.choice(names)], [draw.choice(values)], [draw.choice(names), draw.choice(values)]]
            )
        if words[0] == "info" and set(words[1:]) <= {"--selftest", "--quiet", "--json", "--"}:
            continue  # nothing is wrong
        if words[0] in ("run", "compare"):  # a study would begin, or be refused by a function that is not there
            words[1:1] = ["--seeds", "nan"]
        if words[0] == "tune":
            words[1:1] = ["--trials", "nan"]
        refused(*words)
        wrong += 1


@pytest.mark.parametrize("words", [["info"], ["info", "--json"], ["info", "--quiet"]])
def test_standard_output_on_a_full_disk(words):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "unlearnx", *words], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert done.returncode == 2
    assert done.stderr == "unlearnx info: standard output cannot be written to: No space left on device\n"
