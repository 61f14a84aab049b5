"""What all reports share: the frame of the page, and how plots and tables are made."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unlearnx.experiments.comparison import medians

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Page:
    """The page of one experiment.

    Attributes:
        template: file in this folder that extends the frame.
        plots: SVG by name; in the template, NAME_plot is the plot as a data URL.
        values: further variables of the template, besides the result and its first run.
    """

    template: str
    plots: dict[str, str]
    values: dict[str, Any]

    def render(self, result: dict[str, Any]) -> str:
        """The HTML, which loads no other files. `result` may be an audit, which has no ``runs``."""
        from jinja2 import Environment, PackageLoader, StrictUndefined

        engine = Environment(
            loader=PackageLoader("unlearnx.experiments", "report"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        plots = {f"{name}_plot": _inline(svg) for name, svg in self.plots.items()}
        first = next(iter(result.get("runs", ())), None)
        return engine.get_template(self.template).render(result=result, first=first, **self.values, **plots)


def new_figure(width: float, height: float):
    """An empty figure of that many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def to_svg(figure) -> str:
    """The figure as SVG."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return buffer.getvalue()


def _inline(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def new_table(result: dict[str, Any], *columns: str, over: str = "medians over") -> Table:
    """A table of models with numbers in these columns, for the terminal.

    Args:
        result: of the experiment.
        columns: their titles, in which a line break keeps a column narrow.
        over: what the numbers are of the seeds.
    """
    runs = len(result["runs"])
    title = result["experiment"] + (f", {over} {runs} seeds" if runs > 1 else "")
    return terminal_table(title, "model", *columns)


def terminal_table(title: str, name: str, *columns: str) -> Table:
    """A table that fits a terminal of 80 columns: names on the left may wrap between words, numbers do not."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=title, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left"
    )
    table.add_column(name, vertical="top")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    table.caption_justify, table.caption_style = "left", ""
    return table


def named(result: dict[str, Any], method: str) -> str:
    """A method's name, with a note where some runs did not apply it."""
    note = refused(result, method)
    return f"{method} ({note})" if note else method


def models(result: dict[str, Any], first: str) -> list[str]:
    """The names of the rows of tables: the model that was there first, the unlearned ones, and the retrained one."""
    return [first, *result["methods"], "retrained"]


def label_of(result: dict[str, Any], model: str) -> str:
    """The name of a model's row: a method's as :func:`named` has it, others as they are."""
    return named(result, model) if model in result["methods"] else model


def refused(result: dict[str, Any], method: str) -> str:
    """A note where some runs did not apply the method, else nothing."""
    runs = result["runs"]
    count = sum(not run["methods"][method]["applied"] for run in runs)
    if not count:
        return ""
    return f"not applied in {count} of {len(runs)}" if count < len(runs) else "not applied"


def over_runs(result: dict[str, Any], *models: str) -> dict[str, dict[str, float]]:
    """Medians over the runs of the numbers of these models, which runs have beside their methods."""
    return {name: medians([run[name] for run in result["runs"]]) for name in models}


def percent(value: float) -> str:
    """A share as per cent."""
    return f"{100 * value:.2f} %"
