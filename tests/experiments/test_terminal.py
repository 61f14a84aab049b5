"""What a user sees of a command in the terminal, and what a program reads of it."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from tests.experiments.conftest import COMPARE
from unlearnx import _progress, ops
from unlearnx._progress import progress_bar, stderr_console
from unlearnx.cli import app


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture
def again(compared):
    """Runs the finished comparison once more, with further options: its trials are read, and nothing is trained."""
    return lambda *options: run(*COMPARE, "--out", compared[1].parent, *options)


@pytest.mark.parametrize("command", ["info", "run", "compare", "unlearn"])
def test_help_fits_80_columns(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = run(command, "--help").stdout
    assert "--quiet" in text
    assert "--json" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_results_go_to_stdout_and_the_log_to_stderr(compared):
    result, folder = compared
    assert result.exit_code == 0
    log = result.stderr.splitlines()
    assert log[0].endswith(f"results go to {folder}")
    assert len(log) > 5
    for line in log:
        assert re.fullmatch(r"\d\d:\d\d:\d\d .*|training: \d+ of \d+ after \d+ s", line)
        assert ".py" not in line
    assert re.search("(Closest to retraining|Smallest average gap): ssd", result.stdout)
    assert result.stdout.splitlines()[-1] == f"Report: {folder / 'report.html'}"
    assert "seed 0" not in result.stdout


def test_quiet_shows_where_the_report_is(again, compared):
    result = again("--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"Report: {compared[1] / 'report.html'}\n"


def test_json_is_all_of_stdout(again, compared):
    result = again("--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found.pop("report") == str(compared[1] / "report.html")
    assert found == json.loads((compared[1] / "result.json").read_text())
    assert "results go to" in result.stderr


def test_json_and_quiet_of_run(compared, tmp_path):
    trial = compared[1] / "trials" / "seed-0" / "ssd.json"
    result = run("run", "--recipe", trial, "--out", tmp_path, "--json", "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found["different"] == []
    assert found["recorded"]["measures"]["gap"] == found["repeated"]["measures"]["gap"]
    result = run("run", "--recipe", trial, "--out", tmp_path, "--name", "again", "--quiet")
    assert result.stdout == f"Measures that differ: none\nTrials: {tmp_path / 'again' / 'trials'}\n"


@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_errors_go_to_stderr(option):
    result = run("compare", "poison-digits", option)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("unlearnx compare poison-digits: EXPERIMENT is 'poison-digits'")
    assert len(result.stderr.splitlines()) == 1


def test_info(monkeypatch):
    found = json.loads(run("info", "--json").stdout)
    assert found.keys() >= {"version", "torch_running", "gpus"}
    assert "selftest_passed" not in found
    assert run("info", "--quiet").stdout == f"unlearnx: {found['version']}\n"
    monkeypatch.setattr(ops, "__all__", ["ssd_dampen_", "no_such_op"])
    result = run("info", "--selftest", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["selftest_passed"] is False
    assert "ssd_dampen_" in result.stderr
    result = run("info", "--selftest", "--quiet")
    assert result.exit_code == 1
    assert "FAILED no_such_op" in result.stdout
    assert result.stdout.splitlines()[-1].endswith("4 failures")
    assert not re.search("^ssd_dampen_", result.stdout, re.M)


def test_lines_where_there_is_no_terminal(monkeypatch, capsys):
    seconds = iter([0, 1, 6, 8, 11, 13, 200, 230, 261, 270])
    monkeypatch.setattr(_progress.time, "monotonic", lambda: next(seconds))
    with progress_bar("training", 9, True) as advance:
        for _ in range(9):
            advance(1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "training: 2 of 9 after 6 s",
        "training: 5 of 9 after 13 s",
        "training: 6 of 9 after 200 s",
        "training: 8 of 9 after 261 s",
    ]


def test_nested_bars_share_the_terminal(monkeypatch, capsys):
    stderr_console.cache_clear()
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with progress_bar("outer", None, True) as advance, progress_bar("inner", 7, True) as inner:
        advance(1)
        inner(3)
        print("a result")
        _progress._shown.refresh()
    captured = capsys.readouterr()
    assert captured.out == "a result\n"
    for text in ("outer", "inner", "3/7"):
        assert text in captured.err
    assert _progress._shown is None
    stderr_console.cache_clear()


@pytest.fixture
def started(tmp_path):
    """Starts a command on a terminal of 80 columns, and reads what it shows until a text appears."""
    processes = []

    def start(text, *arguments):
        master, slave = pty.openpty()
        environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
        command = [sys.executable, "-m", "unlearnx", *map(str, arguments), "--out", str(tmp_path)]
        process = subprocess.Popen(command, stderr=slave, stdout=subprocess.PIPE, env=environment, text=True)
        processes.append(process)
        os.close(slave)
        shown = ""
        while text not in shown:
            shown += os.read(master, 4096).decode()
        return process, master, shown

    yield start
    for process in processes:
        process.kill()
        process.wait()


LOSES_AN_INTERRUPT = """
import signal
from unlearnx import _interrupts
from unlearnx._progress import progress_bar

class Finalised:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

_interrupts.remember()
with progress_bar("training", 3, False) as advance:
    advance(1)
    Finalised()  # Python prints what its finaliser raises, and goes on
    print("went on", flush=True)
    advance(1)
print("not reached")
"""


def test_an_interrupt_that_a_finaliser_swallows_is_raised_again():
    found = subprocess.run([sys.executable, "-c", LOSES_AN_INTERRUPT], capture_output=True, text=True)
    assert found.stdout == "went on\n"
    assert "Exception ignored in" in found.stderr
    assert found.stderr.rstrip().endswith("KeyboardInterrupt")
    assert found.returncode != 0


def test_a_training_shows_its_progress_and_ends_on_ctrl_c(started):
    process, terminal, shown = started("training  ", "run", "poison-digits", "--epochs", 5000)
    assert "training on clean labels" in shown
    process.send_signal(signal.SIGINT)
    rest = b""
    start = time.monotonic()
    while time.monotonic() - start < 60:
        try:
            rest += os.read(terminal, 4096)
        except OSError:  # the process has closed it
            break
    assert process.wait(60) == 130
    assert process.stdout.read() == ""
    lines = [line for line in re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", rest).decode().splitlines() if line.strip()]
    assert lines[-1] == "unlearnx run poison-digits: interrupted"
    assert not any("Traceback" in line for line in lines)
