"""Tables of README.md and of the pages under docs are what benchmarks/results says."""

import re
import subprocess
import sys

import pytest

from benchmarks import report, units

README = report.ROOT / "README.md"


def test_pages_hold_the_committed_results():
    pages = report.pages()
    for file, text in report.with_tables(pages).items():
        assert pages[file] == text, f"{file.relative_to(report.ROOT)}: run python -m benchmarks.report"


def test_runs_as_a_command():
    command = [sys.executable, "-m", "benchmarks.report", "--check"]
    result = subprocess.run(command, cwd=report.ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_table_has_a_place():
    pages = report.pages()
    page = report.ROOT / "docs" / "methods.md"
    pages[page] = pages[page].replace("<!-- results: forget-cifar -->", "")
    with pytest.raises(ValueError, match="no <!-- results: NAME --> for \\['forget-cifar'\\]"):
        report.with_tables(pages)


def test_places_without_a_table_are_noticed():
    pages = report.pages()
    pages[README] += "<!-- results: forget-nothing -->\n<!-- end -->\n"
    with pytest.raises(ValueError, match="name \\['forget-nothing'\\]"):
        report.with_tables(pages)


def test_empty_places_are_filled():
    """And nothing after them is taken for the table."""
    pages = report.pages()
    empty = {
        file: re.sub(r"(<!-- results: \S+ -->\n).*?(<!-- end -->)", r"\1\2", text, flags=re.DOTALL)
        for file, text in pages.items()
    }
    assert len(empty[README]) < len(pages[README])
    assert report.with_tables(empty) == pages


def test_table():
    assert report.markdown(["a", "b"], [["1", ""]]) == "| a | b |\n|---|---|\n| 1 | |"


def test_unit_is_that_of_the_benchmarks():
    assert report.UNIT == units.UNIT


def test_plot(tmp_path):
    report.plot(tmp_path / "x.svg")
    assert (tmp_path / "x.svg").stat().st_size > 10_000


def test_results_hold_no_paths_of_a_machine():
    for file in report.RESULTS.glob("*.json"):
        assert not re.search(r"/(home|root|tmp|work)/", file.read_text()), file.name
