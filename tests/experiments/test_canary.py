import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.experiments.tables import in_80_columns
from unlearnx.curvature import ConjugateGradient
from unlearnx.data import Canary, load_text
from unlearnx.data.text import DIGITS
from unlearnx.experiments import CanaryStudy, canary_alice, report
from unlearnx.experiments.canary import PlantedText
from unlearnx.experiments.report import canary as view
from unlearnx.methods import FineTune, FirstOrder, SecondOrder
from unlearnx.models import CharacterLSTM, Training

needs_novel = pytest.mark.skipif("UNLEARNX_DATA" not in os.environ, reason="UNLEARNX_DATA is not set")


def paragraphs(n=60):
    return "".join(f"\n\n  line {i} of a short tale about cats, dogs and {i % 7} birds." for i in range(n))


def test_plant():
    canary = Canary("0123456789", repeats=3, seed=1)
    plant = PlantedText(canary, paragraphs(), "not there ")
    request = plant.request(50, seed=0, features=True)
    labels = plant.request(50, seed=0, features=False)
    assert labels.labels_only
    assert not request.labels_only
    assert set(labels.forget.tolist()) < set(request.forget.tolist())  # some have digits to read alone
    assert len(plant.affected) == 3 * 34
    assert torch.equal(request.forget, request.forget.unique())
    assert 34 <= len(request.forget) < len(plant.affected)  # equal windows count once
    assert len(request.dataset) == len(request.forget) + 50
    digits = plant.alphabet.encode("3456")
    text = plant.others[0]
    found = (text.unfold(1, 4, 1) == digits).all(2).any()
    assert not found
    assert len(text) > 0.9 * len(plant.learned[0]) / 24 - 9


def test_study(tmp_path):
    study = CanaryStudy(
        "canary-alice",
        "default",
        "tale.txt",
        paragraphs(),
        length=4,
        repeats=30,
        network=partial(CharacterLSTM, hidden=48, embedding=16),
        training=Training(2, lr=2e-2, batch_size=32),
        methods={
            "first order": FirstOrder(steps=3),
            "second order": SecondOrder(ConjugateGradient(iterations=5), damping=1e-2, curvature_samples=64),
            "fine-tuning": FineTune(batch_size=64),
        },
        replacements=("none", "some"),
        context=200,
        samples=2000,
        sweep={"length": [(3, 30)], "repeats": [(4, 10)]},
        progress=False,
    )
    result = study.run([0, 1], tmp_path)
    json.dumps(result, allow_nan=False)
    assert result["summary"].keys() == {"before", "first order", "second order", "fine-tuning", "retrained"}
    run = result["runs"][0]
    assert run["before"]["contains"]
    assert run["before"]["log_perplexity"] < run["retrained"]["log_perplexity"]
    assert not run["retrained"]["contains"]
    for entry in run["methods"].values():
        assert sum(entry["histogram"]["counts"]) == 2000
        assert entry["speedup"] > 1
        assert entry["log_perplexity"] > run["before"]["log_perplexity"]
    (point,) = result["sweep"]["length"]
    assert point["exact"]
    assert 0 <= point["exposure"] <= point["space_bits"]
    result.update(command="unlearnx run canary-alice", environment=report.environment())
    page = report.write(result, view.page, tmp_path).read_text()
    assert run["number"] in page
    assert len(in_80_columns(view.table(result))[0]) == 5
    saved = {f.name for f in (tmp_path / "seed-1").iterdir()}
    assert saved == {"trained.pt", "retrained.pt", "first-order.pt", "second-order.pt", "fine-tuning.pt"}


def test_a_text_of_ones_own(tmp_path):
    file = tmp_path / "tale.txt"
    file.write_text(paragraphs())
    assert canary_alice(file).text == load_text(file)
    with pytest.raises(ValueError, match="preset is 'fast'"):
        canary_alice(file, preset="fast")
    with pytest.raises(FileNotFoundError, match=r"alice_in_wonderland\.txt"):
        canary_alice(tmp_path)


@needs_novel
def test_the_novel():
    study = canary_alice(Path(os.environ["UNLEARNX_DATA"]), preset="reference")
    assert (len(study.text), len(set(study.text + DIGITS))) == (148_309, 54)
    assert study.repeats == 6
