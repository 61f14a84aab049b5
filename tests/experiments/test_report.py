import json
import re

import pytest

from tests.experiments.tables import in_80_columns
from unlearnx.experiments import report
from unlearnx.experiments.report import canary as view


@pytest.fixture
def rendered(canary_result, described, tmp_path):
    """Writes the report of a result; returns its HTML, on one line."""

    def write(result=canary_result):
        path = report.write({**result, **described}, view.page, tmp_path / "x")
        return " ".join(path.read_text().split())

    return write


def test_canary_report(canary_result, rendered, tmp_path):
    html = rendered()
    files = {file.name for file in (tmp_path / "x").iterdir()}
    assert files == {"result.json", "report.html", "ranks.svg", "sweep.svg"}
    assert json.loads((tmp_path / "x" / "result.json").read_text())["summary"] == canary_result["summary"]
    assert not re.search(r'(src|href)="(?!data:)', html)
    for text in (
        "<b>41.4 bits</b><span>exposure of the number before, at least 32.0",
        "<b>0.9 bits</b><span>exposure after second order",
        "<b>3 → 0</b><span>models that write the number",
        "<b>-0.22</b>",
        "faster than retraining",
        "<mark>4815162342</mark>!&#39; sa",
        "&lt;dry enough&gt;↵↵↵",
        "medians over 3 seeds",
        "the maximum of 33.2 bits",
        "2,000 random",
        "SecondOrder(LiSSA(damping=0.1))",
    ):
        assert text in html
    cells = re.search(r'<tr class="best"><td>second order</td>(.*?)</tr>', html)[1]
    numbers = ["0.9", "0.0", "57.5", "0 of 3", "58.49 %", "-0.22", "33.25"]
    assert re.findall("<td>(.*?)</td>", cells)[:-1] == numbers


def test_report_without_sweep_of_one_seed(canary_result, rendered, tmp_path):
    html = rendered({**canary_result, "runs": canary_result["runs"][1:2], "sweep": None})
    assert not (tmp_path / "x" / "sweep.svg").exists()
    assert "What makes a model memorise" not in html
    assert "irst seed" not in html
    assert "medians over" not in html
    assert "not applied" not in html


def test_report_of_ranked_candidates_shows_no_fit(canary_result, rendered):
    for run in canary_result["runs"]:
        for measured in (run["before"], run["retrained"], *run["methods"].values()):
            measured |= {"exact": True, "fit": None, "fit_distance": None}
    html = rendered({**canary_result, "samples": None})
    assert "skew-normal" not in html
    assert "Kolmogorov" not in html


def test_refused_methods_give_their_reasons(canary_result, rendered):
    reason = "the loss of the &lt;corrected&gt; text rose"
    html = rendered()
    assert html.count(f"<b>first order</b> was not applied with seed 0: {reason}.") == html.count(reason) == 1
    assert "first order (not applied in 1 of 3)" in html
    html = rendered({**canary_result, "runs": canary_result["runs"][:1]})
    assert f"<b>first order</b> was not applied: {reason}." in html
    assert "first order (not applied)" in html


def test_highlighted_method_keeps_the_accuracy_where_one_does(canary_result, rendered):
    assert "exposure after second order" in rendered()
    canary_result["summary"]["second order"]["accuracy_change"] = -0.02
    assert "exposure after first order" in rendered()


def test_canary_table(canary_result):
    shown, _ = in_80_columns(view.table(canary_result))
    rows = {name: numbers for name, *numbers in shown}
    assert rows["before"] == ["41.4", "32.0", "3 of 3", "58.71 %", "", "", ""]
    assert rows["second order"] == ["0.9", "0.0", "0 of 3", "58.49 %", "-0.22", "33.25", "24x"]
    assert rows["retrained"] == ["0.9", "0.0", "0 of 3", "58.83 %", "+0.12", "812.00", "1x"]
