import html
import json
import math
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from jinja2 import Template

from tests.experiments.tables import in_80_columns
from unlearnx.experiments import report
from unlearnx.experiments.report import forget as view
from unlearnx.experiments.report.frame import new_figure
from unlearnx.experiments.report.labels import label_points
from unlearnx.experiments.report.nearness import far_from_retraining
from unlearnx.experiments.report.table_columns import column, speedups

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PLOTS = ("pareto", "fidelity", "confidences", "sweeps")
VOID = {"meta", "img", "br", "source"}
# Tags that end a paragraph: inside one they would tear it apart.
BLOCKS = {"p", "div", "table", "details", "h1", "h2", "dl", "ul", "ol"}


CASES = [
    {},
    {"methods": 14, "sweeps": 1},
    {"kind": "random", "methods": 14, "seeds": 5, "sweeps": 3, "saliency": False},
    {"kind": "random", "methods": 3, "seeds": 1, "sweeps": 0, "saliency": False},
]


class Document(HTMLParser):
    """Checks that tags are closed in order; keeps the rows of each table and what is loaded from where."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tables, self.sources, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        assert not (tag in BLOCKS and "p" in self.open), f"<{tag}> inside <p>"
        self.sources += [value for name, value in attributes if name in ("src", "srcset", "href", "action", "data")]
        if tag == "img":
            assert dict(attributes)["alt"]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if "style" in self.open:
            return
        self.text.append(text)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += " " * ("small" in self.open) + text.strip()


@pytest.fixture
def rendered(described, tmp_path):
    """Writes the report of a result; returns what was read of it."""

    def write(result):
        return Document(report.write({**result, **described}, view.page, tmp_path / "x").read_text())

    return write


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request, tmp_path_factory):
    """A result, and the folder that its report was written to."""
    result = request.getfixturevalue("forget_result")(**request.param)
    folder = tmp_path_factory.mktemp("report")
    report.write({**result, **request.getfixturevalue("described")}, view.page, folder)
    return result, folder


def rows(table):
    """The cells of a table by the first of each row."""
    return {re.split(r"  ?(?=not applied|forgets)", row[0])[0]: row[1:] for row in table}


def test_report_is_whole_and_loads_nothing(case):
    result, folder = case
    text = (folder / "report.html").read_text()
    page = Document(text)
    assert all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"https?://|url\(|@import|<script|<link", text)
    words = " ".join(page.text)
    assert not re.search(r"\b(nan|inf|None|undefined)\b", words)
    plots = [p for p in PLOTS if p != "sweeps" or result["sweeps"]]
    files = {file.name for file in folder.iterdir()}
    assert files == {"result.json", "report.html"} | {f"{p}{form}.svg" for p in plots for form in ("", "_narrow")}
    assert json.loads((folder / "result.json").read_text())["winner"] == result["winner"]
    assert ("What the models look at" in words) == (result["saliency"] is not None)
    assert ("How hard to forget" in words) == bool(result["sweeps"])
    for measure in result["measures"].values():
        assert measure["note"] in words
    for table in page.tables[: -2 if result["saliency"] else -1]:
        assert {"retrained", "original", *result["methods"]} == rows(table).keys() - {"model"}
        assert {len(row) for row in table} == {len(table[0])}


def test_main_table(forget_result, rendered):
    result = forget_result()
    page = rendered(result)
    main = page.tables[0]
    assert [" ".join(cell.split()) for cell in main[0]] == [
        "model",
        "gap %",
        "forget accuracy %",
        "retain accuracy %",
        "test accuracy %",
        "test accuracy of the forgotten class %",
        "SalUn's attack %",
        "tug of war",
        "time s",
        "speedup \N{MULTIPLICATION SIGN}",
    ]
    found = rows(main)
    gaps = {name: result["summary"][name]["gap"] for name in result["methods"]}
    assert list(found) == ["model", "retrained", *sorted(gaps, key=lambda name: gaps[name]["mean"]), "original"]
    for name, gap in gaps.items():
        texts = [f"{100 * gap[key]:.2f}" for key in ("mean", "low", "high")]
        interval = f" {texts[1]} \N{EN DASH} {texts[2]}" if texts[1] != texts[2] else ""
        assert found[name][0] == texts[0] + interval
        seconds = [result["summary"][m]["seconds"]["mean"] for m in ("retrained", name)]
        assert found[name][-1] == f"{seconds[0] / seconds[1]:,.1f}"
    assert found["retrained"][-1] == "1.0"
    assert found["original"][-1] == ""


def test_what_is_said_of_the_request_and_the_seeds(forget_result, rendered):
    words = " ".join(" ".join(rendered(forget_result()).text).split())
    assert "to forget all 146 images of class '1'." in words
    assert "test images of the other classes; means over 3 seeds." in words
    assert "random perturbation was not applied with seed 0: the loss of the <retain> set rose." in words
    assert "gradient ascent forgets too much with 3 of 3 seeds; the first: forget accuracy" in words
    assert "unlearnx run --recipe trials/seed-0/random-perturbation.json" in words
    words = " ".join(" ".join(rendered(forget_result("random", seeds=1)).text).split())
    assert "to forget 144 images drawn at random, 10 %." in words
    for phrase in ("means over", "first seed", "interval", "with seed", "of the class", "forgotten class"):
        assert phrase not in words


def test_attacks_and_saliency(forget_result, rendered):
    result = forget_result()
    page = rendered(result)
    attacks, looks = page.tables[-2:]
    winner = result["winner"]
    assert attacks[0] == ["membership attack, %", "original", winner, "retrained"]
    assert attacks[1] == ["SalUn against test images", "60.0", "60.0", "60.0"]
    assert attacks[2] == ["SalUn against test images of the class", "50.0", "50.0", "50.0"]
    assert [row[0] for row in looks if len(row) == 1] == ["forget set", "retain set"]
    assert [row for row in looks if len(row) == 4][1:3] == [["1", "1", "7", "8"], ["1", "1", "7", "8"]]
    assert len(looks) == 1 + 2 + 6


def test_what_is_unknown_is_left_out(forget_result, rendered, tmp_path):
    result = forget_result("random", seeds=1)
    for name, entry in result["summary"].items():
        entry["tow"] = {"mean": math.nan, "low": math.nan, "high": math.nan}
        entry["zrf"] = None
        if name in ("original", "SSD"):
            del entry["gap"]
    result |= {"pareto": [], "confidences": {}, "attacks": {}, "sweeps": []}
    page = rendered(result)
    assert "tug of war" not in page.tables[0][0]
    assert "ZRF" not in page.tables[1][0]
    found = rows(page.tables[0])
    assert found["SSD"][0] == found["original"][0] == "\N{EN DASH}"
    assert list(found)[-2:] == ["SSD", "original"]
    assert "Who was in the training set?" not in page.text
    assert "nan" not in " ".join(page.text).split()
    assert not (tmp_path / "x" / "confidences.svg").exists()


def test_the_smallest_gap_is_not_called_near_where_an_attack_gives_it_away(forget_result, rendered):
    result = forget_result()
    winner, retrained = (result["summary"][name] for name in (result["winner"], "retrained"))
    assert far_from_retraining(result, result["winner"]) == []
    assert "comes closest to retraining" in " ".join(rendered(result).text)
    for row, attack, relearn in ((winner, 0.0, 2.5), (retrained, 0.336, 1.0)):
        row["mia_ssd"] = dict.fromkeys(("mean", "low", "high"), attack)
        row["relearn_time"] = dict.fromkeys(("mean", "low", "high"), relearn)
    far = ["SSD's attack 0.0 %, retrained 33.6 %", "relearn time 2.50, retrained 1.00"]
    assert far_from_retraining(result, result["winner"]) == far
    words = " ".join(" ".join(rendered(result).text).split())
    assert "comes closest" not in words
    assert f"near to retraining on average, but not in everything: {'; '.join(far)}." in words
    _, text = in_80_columns(view.table(result))
    assert f"Smallest average gap: {result['winner']}" in text
    for unknown in (None, {"mean": None}, {"mean": math.nan}):
        winner["mia_ssd"] = winner["relearn_time"] = unknown
        assert far_from_retraining(result, result["winner"]) == []


def test_no_method_was_always_applied(forget_result, rendered):
    result = forget_result(methods=3, saliency=False)
    for run in result["runs"]:
        for entry in run["methods"].values():
            entry |= {"applied": False, "reason": "nothing to dampen"}
    result |= {"winner": None, "pareto": []}
    words = " ".join(" ".join(rendered(result).text).split())
    assert "none of 3 methods was applied with every seed" in words
    assert "Not applied: " in words
    assert "that the line joins" not in words


def test_best_of_a_column(forget_result):
    result = forget_result(methods=3, seeds=1)
    names = list(result["methods"])  # the last one is refused and does not compete

    def best(ideal, reference, *values):
        result["measures"]["js"] |= {"ideal": ideal}
        for name, value in zip(["retrained", *names], (reference, *values), strict=True):
            result["summary"][name]["js"] = {"mean": value, "low": value, "high": value}
        return [name for name, cell in column(result, "js").cells.items() if cell.best]

    assert best("low", 0.0, 0.2, 0.3, 0.1) == names[:1]
    assert best("high", 0.0, 0.2, 0.3, 0.4) == names[1:2]
    assert best("retrained", 0.5, 0.6, 0.3, 0.5) == names[:1]
    assert best("retrained", 0.5, 0.4, 0.6, 0.5) == []  # equally near
    assert [name for name, cell in speedups(result).cells.items() if cell.best] == ["SSD"]


@pytest.mark.parametrize(
    ("unit", "values", "texts"),
    [
        ("%", (0.5, 0.00004), ("50.00", "0.00")),
        ("s", (1234.5, 0.31), ("1,234.50", "0.31")),
        ("s", (120.4, 33.2), ("120", "33")),
        ("nats", (0.0123, 0.00045), ("0.0123", "0.0004")),
        ("", (0.98, 0.5), ("0.980", "0.500")),
        ("", (0.0, 0.0), ("0.000", "0.000")),
    ],
)
def test_decimals(forget_result, unit, values, texts):
    result = forget_result(methods=3, seeds=1)
    for name in result["summary"]:
        value = values[name == "retrained"]
        result["summary"][name]["js"] = {"mean": value, "low": value, "high": value}
    result["measures"]["js"]["unit"] = unit
    cells = column(result, "js").cells
    assert (cells["SSD"].text, cells["retrained"].text) == texts


@pytest.mark.parametrize("count", [1, 3, 14])
@pytest.mark.parametrize("width", [10.0, 3.9])
@pytest.mark.parametrize("seed", range(3))
def test_labels_cover_nothing(count, width, seed):
    draw = random.Random(seed)
    points = {f"method {'with a name ' * (k % 3)}{k}": (draw.gauss(0, 1), draw.gauss(0, 1)) for k in range(count)}
    figure = new_figure(width, 5)
    axes = figure.subplots()
    axes.scatter(*zip(*points.values(), strict=True))
    axes.margins(0.15)
    texts = label_points(axes, points)
    assert {text.get_text().replace("\n", " ") for text in texts} == points.keys()
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in texts]
    for k, box in enumerate(boxes):
        assert axes.bbox.containsx(box.x0)
        assert axes.bbox.containsx(box.x1)
        assert not any(box.overlaps(other) for other in boxes[:k])
        assert not any(box.contains(*axes.transData.transform(point)) for point in points.values())


def test_table(forget_result):
    result = forget_result()
    rows, text = in_80_columns(view.table(result))
    assert "forget-class-digits, means over 3 seeds" in text
    found = {name: numbers for name, *numbers in rows}
    gap, forget = (result["summary"]["SalUn"][key] for key in ("gap", "forget_accuracy"))
    assert found["SalUn"][0] == f"{100 * gap['mean']:.2f} ±{100 * (gap['high'] - gap['mean']):.2f}"
    assert found["SalUn"][1] == f"{100 * forget['mean']:.2f}"
    assert {"random perturbation (not applied in 1 of 3)", "SCRUB (not applied)"} <= found.keys()
    assert f"Closest to retraining: {result['winner']}" in text


WIDTHS = (1200, 390)
# Frames have any width, windows a least one. What breaks the policy is an error on the console.
WRAPPER = """<!doctype html><title>report</title><body>
{% for width in widths %}
<iframe style="border: 0; width: {{ width }}px; height: 800px" srcdoc="{{ page }}"></iframe>
{% endfor %}
<script>
// How wide each document is, what sticks out of it, images that did not load or that nobody can read, requests.
const look = frame => {
  const page = frame.contentDocument;
  const sticksOut = e => !e.closest(".scroll") && e.getBoundingClientRect().right > frame.clientWidth + 0.5;
  const sources = [...page.querySelectorAll("source")];
  return {
    width: page.documentElement.scrollWidth,
    outside: [...page.body.querySelectorAll("*")].filter(sticksOut).map(e => e.outerHTML.slice(0, 80)),
    broken: [...page.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt),
    tiny: [...page.images].filter(i => i.getBoundingClientRect().width < 60).map(i => i.alt),
    requests: frame.contentWindow.performance.getEntriesByType("resource").map(r => r.name),
    narrow: [...new Set(sources.map(s => s.nextElementSibling.currentSrc === s.srcset))],
  };
};
addEventListener("load", () => {
  document.body.dataset.found = JSON.stringify([...document.querySelectorAll("iframe")].map(look));
});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="needs chromium or Chrome on the PATH")
def test_browser_shows_it_whole_on_screens_and_phones(case, tmp_path):
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    page = (case[1] / "report.html").read_text()
    page = page.replace("<head>", f'<head><meta http-equiv="Content-Security-Policy" content="{policy}">')
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(Template(WRAPPER).render(widths=WIDTHS, page=html.escape(page)))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--no-first-run", "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += ["--enable-logging=stderr", "--hide-scrollbars", "--virtual-time-budget=5000"]
    shown = subprocess.run([*command, "--dump-dom", wrapper.as_uri()], capture_output=True, text=True, timeout=300)
    assert "CONSOLE" not in shown.stderr
    found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', shown.stdout)[1]))
    nothing = {"outside": [], "broken": [], "tiny": [], "requests": []}
    assert found == [{"width": width, "narrow": [width == 390], **nothing} for width in WIDTHS]
