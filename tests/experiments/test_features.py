import json
import re

import numpy as np
import pytest

from tests.experiments.tables import in_80_columns
from unlearnx import experiments
from unlearnx.data import FeatureTable
from unlearnx.experiments import FeatureStudy, features, report
from unlearnx.experiments.features import Regression, Shards
from unlearnx.experiments.report import features as view


def small_table(n=300, p=20):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(n, p))
    y = (x @ generator.normal(size=p) > 0).astype(np.int64)
    x /= np.linalg.norm(x, axis=1).max()
    sensitive = {f"word {k}": [k] for k in range(8)} | {"pair": [8, 9]}
    return FeatureTable(x[:240], y[:240], x[240:], y[240:], sensitive, "surnames")


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    study = FeatureStudy("features-enron", small_table(), (1, 3, 9), lam=0.1, progress=False)
    return study.run([0, 1, 2], tmp_path_factory.mktemp("run"))


def test_study(result):
    assert [run["seed"] for run in result["runs"]] == [0, 1, 2]
    assert json.loads(json.dumps(result)) == result
    for count in ("1", "3", "9"):
        s = result["summary"][count]
        assert s["retrained"]["residual"] <= result["retrained_to"]
        assert s["retrained"]["agreement"] == s["retrained"]["relative_accuracy"] == s["retrained"]["speedup"] == 1
        assert s["second order"]["residual"] <= 0.7 * s["before"]["residual"]
        assert s["second order, 2 steps"]["residual"] <= 0.5 * s["second order"]["residual"]
        assert s["fine-tuning"]["seconds"] > 0
        assert s["second order, 2 steps"]["agreement"] >= 0.9
        assert "seconds" not in s["before"]
        assert "residual" not in s["SISA"]  # several models
        for name in ("second order", "second order, 2 steps"):
            assert result["together"][count][name]["residual"] == pytest.approx(s[name]["residual"], rel=0.05, abs=1e-6)
    draw = result["runs"][0]["counts"]["9"]
    assert draw["second order"]["speedup"] == draw["retrained"]["seconds"] / draw["second order"]["seconds"]


def test_study_keeps_the_trained_parameters_and_draws_by_seed(tmp_path):
    study = FeatureStudy("features-enron", small_table(), (3,), progress=False)
    runs = [study.run([seed], tmp_path)["runs"][0]["counts"]["3"]["before"]["residual"] for seed in (5, 5, 6)]
    assert runs[0] == runs[1] != runs[2]
    assert np.load(tmp_path / "theta.npy").shape == (20,)


def test_untouched_model_pays_for_what_is_to_be_forgotten(tmp_path):
    """Its residual is the gradient of the changed objective, parameters of the features included."""
    table = small_table()
    study = FeatureStudy("features-enron", table, (9,), lam=0.5, progress=False)
    found = study.run([0], tmp_path)["runs"][0]["counts"]["9"]["before"]["residual"]
    theta, x = np.load(tmp_path / "theta.npy"), table.train_x.copy()
    x[:, :10] = 0
    gradient = x.T @ (1 / (1 + np.exp(-x @ theta)) - table.train_y) + 0.5 * theta
    assert found == pytest.approx(np.linalg.norm(gradient), rel=1e-9)


def test_shards_train_again_where_the_features_are(monkeypatch):
    table = small_table()
    table.train_x[:, 3] = 0
    table.train_x[[5, 200], 3] = 0.5
    shards = Shards(table, 0.1)
    trained = []
    retrain = Regression.retrain
    monkeypatch.setattr(Regression, "retrain", lambda self: trained.append(len(self.signs)) or retrain(self))
    parameters = shards.without([3])
    touched = [k for k, (x, _) in enumerate(shards.data) if x[:, 3].any()]
    assert len(trained) == len(touched) in (1, 2)
    for k, (old, new) in enumerate(zip(shards.theta, parameters, strict=True)):
        assert (new is old) == (k not in touched)
        assert k not in touched or new[3] == 0
    chances = shards.chances(parameters)
    assert ((chances > 0.5) == table.test_y).mean() > 0.85


def test_report(result, described, tmp_path):
    path = report.write({**result, **described}, view.page, tmp_path / "x")
    html = " ".join(path.read_text().split())
    files = {file.name for file in (tmp_path / "x").iterdir()}
    assert files == {"result.json", "report.html", "residuals.svg", "costs.svg"}
    assert not re.search(r'(src|href)="(?!data:)', html)
    for text in (
        "240 samples of 20 features",
        "1 to 9 of its 9 sensitive features, surnames",
        "means over 3 draws",
        "gradient residual before, 9 features",
        "faster than retraining",
        "where the 3 requests are solved together",
        "Requests solved together",
    ):
        assert text in html
    assert html.count('<tr class="best">') == 3


def test_report_of_one_draw(result, described, tmp_path):
    path = report.write({**result, **described, "runs": result["runs"][:1]}, view.page, tmp_path / "x")
    html = path.read_text()
    assert "solved together" not in html
    assert "over 1 draw," in " ".join(html.split())


def test_highlighted_method_is_exact_where_one_is(result):
    from unlearnx.experiments.report.features import _best

    assert _best(result, "9").startswith("second order")
    models = {name: {**s, "residual": 5.0} for name, s in result["summary"]["9"].items()}
    models["fine-tuning"]["residual"] = 4.0
    assert _best({**result, "summary": {"9": models}}, "9") == "fine-tuning"


def test_table(result):
    rows, text = in_80_columns(view.table(result))
    assert "features-enron, means over 3 draws" in text
    assert [row[0] for row in rows] == list(result["summary"]["1"]) * 3


def test_arguments(tmp_path):
    with pytest.raises(ValueError, match="preset is 'fast', features-adult has only 'default'"):
        features("adult", tmp_path, preset="fast")
    with pytest.raises(ValueError, match="epochs is 3"):
        features("adult", tmp_path, epochs=3)
    with pytest.raises(FileNotFoundError, match=r"has no file adult\.data\.gz"):
        features("adult", tmp_path)


def test_diabetes(real_data, tmp_path):
    result = experiments.features("diabetes", real_data, progress=False).run([0, 1], tmp_path)
    assert result["accuracy"] > 0.7
    for s in result["summary"].values():
        assert s["second order"]["residual"] <= 0.2 * s["before"]["residual"]
