"""What the README and the pages of the documentation show runs, and the commands that they name exist."""

import re
import shlex
from functools import partial
from pathlib import Path

import pytest
import typer

import unlearnx.metrics
from unlearnx.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOVEL = "\n\n".join(f"  {name} went on, and on." for name in ("Alice", "The rabbit", "A queen") * 12)


def blocks(*languages):
    """The fenced blocks in these languages, each with the place where it begins for a name."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for block in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            if block[1] in languages:
                line = text.count("\n", 0, block.start()) + 1
                found.append(pytest.param(block[2], id=f"{page.relative_to(ROOT)}:{line}"))
    return found


def commands(program):
    """The command lines of a program, continued lines joined."""
    found = []
    for block in blocks("", "console"):
        for line in block.values[0].replace("\\\n", " ").splitlines():
            line = re.sub(r"^(\$ )?([A-Z_]+=\S+ )*", "", line)
            if line.startswith(f"{program} "):
                _, *words = shlex.split(line, comments=True)
                found.append(pytest.param(words, id=shlex.join(words)))
    return found


@pytest.mark.parametrize("code", blocks("python"))
def test_python(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "novel.txt").write_text(NOVEL)
    # A million samples, the default, take a minute.
    monkeypatch.setattr("unlearnx.metrics.exposure", partial(unlearnx.metrics.exposure, samples=2000))
    exec(compile(code, "block", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("words", commands("unlearnx"))
def test_command(words):
    group = typer.main.get_command(app)
    with group.make_context("unlearnx", list(words)) as context:
        command = group.get_command(context, words[0])
        assert command is not None
        command.make_context(words[0], words[1:], parent=context)  # parses, and refuses unknown options


@pytest.mark.parametrize("words", commands("make"))
def test_make_target(words):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = [word for word in words if "=" not in word]
    assert named
    assert set(named) <= set(targets)


def test_pages_are_read():
    """The patterns above still find what they look for."""
    for found in (blocks("python"), commands("unlearnx"), commands("make")):
        assert len(found) > 1
