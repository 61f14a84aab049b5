"""Reports of runs and audits: JSON for programs, HTML for people, each written in one step."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unlearnx import build_info
from unlearnx._files import write_atomically
from unlearnx.experiments.report import audit
from unlearnx.experiments.report.frame import Page
from unlearnx.experiments.runs import write_json

if TYPE_CHECKING:
    from rich.table import Table


def environment() -> dict[str, Any]:
    """Versions, processor and device, which the numbers of a run depend on besides its configuration."""
    cpu = f"CPU, {torch.get_num_threads()} threads"
    return {
        "unlearnx": build_info(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
    }


def _processor() -> str:
    """Name of the processor, and whether it has units for matrices, which decide how fast bfloat16 is."""
    names = re.findall(r"^model name\s*:\s*(.+)$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} with AMX" if torch.cpu._is_amx_tile_supported() else name


def _read(file: Path) -> str:
    return file.read_text() if file.is_file() else ""


def write(result: dict[str, Any], page: Callable[[dict[str, Any]], Page], folder: Path) -> Path:
    """Write `result` as result.json, the plots of its page and report.html under `folder`.

    Returns:
        The path of the report.
    """
    write_json(folder / "result.json", result)  # first, so that no error in a plot can lose hours of work
    shown = page(result)
    for name, svg in shown.plots.items():
        _write(folder / f"{name}.svg", svg)
    _write(folder / "report.html", shown.render(result))
    return folder / "report.html"


def write_audit(record: dict[str, Any], folder: Path) -> Path:
    """Write an audit as audit.json and audit.html under `folder`; returns the path of the page."""
    write_json(folder / "audit.json", record)
    _write(folder / "audit.html", audit.page(record).render(record))
    return folder / "audit.html"


def audit_table(record: dict[str, Any]) -> Table:
    """The table of an audit for the terminal; needs rich."""
    return audit.table(record)


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))
