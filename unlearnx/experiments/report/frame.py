"""What the reports of all experiments share: the frame of the page, and how plots and tables are made."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Page:
    """The page of one experiment.

    Attributes:
        template: file in this folder that fills the frame.
        plots: SVG by name; the template finds each as NAME_plot, the source of an image.
        values: what the template reads besides the result and its first run.
    """

    template: str
    plots: dict[str, str]
    values: dict[str, Any]

    def render(self, result: dict[str, Any]) -> str:
        """The HTML, with everything in it; `result` may be of one run that is not among ``runs``."""
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
    """A table of models with numbers in these columns, for the terminal; `over` says what they are of the seeds."""
    from rich.table import Table

    runs = len(result["runs"])
    table = Table(title=result["experiment"] + (f", {over} {runs} seeds" if runs > 1 else ""))
    table.add_column("model")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def named(result: dict[str, Any], method: str) -> str:
    """A method's name, with a note where some runs did not apply it."""
    note = refused(result, method)
    return f"{method} ({note})" if note else method


def refused(result: dict[str, Any], method: str) -> str:
    """A note where some runs did not apply the method, else nothing."""
    runs = result["runs"]
    count = sum(not run["methods"][method]["info"]["applied"] for run in runs)
    if not count:
        return ""
    return f"not applied in {count} of {len(runs)}" if count < len(runs) else "not applied"


def percent(value: float) -> str:
    """A share as per cent."""
    return f"{100 * value:.2f} %"
