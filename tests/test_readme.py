"""What the README, CONTRIBUTING and the pages of the documentation show runs, and what they name exists."""

import json
import re
import shlex
from functools import partial
from pathlib import Path

import pytest
import typer

import unlearnx.metrics
from tests.tiny_lm import SENTENCES, saved, tiny_llama, tiny_tokenizer
from unlearnx.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAX_README_LINES = 180
FOLDERS = r"csrc|unlearnx|tests|benchmarks|docs|packaging"
NOVEL = "\n\n".join(f"  {name} went on, and on." for name in ("Alice", "The rabbit", "A queen") * 12)


def write_language_model(folder):
    """A model with random weights, an adapter for it, and texts."""
    peft = pytest.importorskip("peft")
    model = tiny_llama()
    saved(folder / "model", model, tiny_tokenizer())
    saved(folder / "lora", peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])))
    held_out = [sentence.replace("author", name) for sentence in SENTENCES for name in ("painter", "queen", "rabbit")]
    for name, texts in {"train": SENTENCES, "held_out": held_out}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


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
    if "load_lm" in code:
        write_language_model(tmp_path)
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


@pytest.mark.parametrize("words", commands("pytest") + commands(".venv/bin/python"))
def test_pytest_arguments(words):
    """What is to be tested is there, and options are those of pytest or benchmarks/conftest.py."""
    options = (ROOT / "benchmarks" / "conftest.py").read_text()
    for word in words[2:] if words[0] == "-m" else words:
        assert (ROOT / word).exists() or word in ("-s", "FILE", "FOLDER") or f'"{word}"' in options, word


def named_files():
    """Files of the repository that pages name in code, or lead to; not patterns such as NAME.py."""
    found = []
    for page in PAGES:
        names = set(re.findall(rf"`((?:{FOLDERS})(?:/[\w.-]+)+)(?:::\w+)?`", page.read_text()))
        found += [pytest.param(name, id=f"{page.name}: {name}") for name in sorted(names) if "NAME" not in name]
    return found


@pytest.mark.parametrize("name", named_files())
def test_file_exists(name):
    assert (ROOT / name).exists()


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.name)
def test_links_of_pages_at_the_root(page):
    """mkdocs looks after those of the others."""
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES


def test_callbacks_of_a_fisher_diagonal():
    """Those that docs/fisher.md explains are where it says."""
    rows = re.findall(r"^\d\. \*\*`(\w+)`\*\* in `(\S+)`", (ROOT / "docs" / "fisher.md").read_text(), re.MULTILINE)
    assert len(rows) == 5
    for name, file in rows:
        assert f"def {name}(" in (ROOT / file).read_text(), f"{file} has no {name}"


def test_pages_are_read():
    """The patterns above still find what they look for."""
    for found in (blocks("python"), commands("unlearnx"), commands("make"), commands("pytest"), named_files()):
        assert found
