import dataclasses
import json

import pytest
import torch

from unlearnx.experiments import forget_class_digits
from unlearnx.experiments.forget import tune, tuning
from unlearnx.experiments.forget.trials import SeedTrials
from unlearnx.experiments.forget.tuning import held_out, numbers, with_numbers
from unlearnx.experiments.report.tuning import table
from unlearnx.experiments.run_store import RunStore
from unlearnx.methods import (
    METHODS,
    RUM,
    SCRUB,
    SSD,
    FineTune,
    FisherMasking,
    GradientAscent,
    Method,
    NegGrad,
    Pipeline,
    RandomPerturbation,
)

COMPARED = {"gradient-ascent": GradientAscent(epochs=3, lr=2e-4, max_increase=9.0), "fisher-masking": FisherMasking()}


def study():
    made = dataclasses.replace(forget_class_digits(epochs=8, progress=False), methods=COMPARED)
    unread = torch.full_like(made.splits.test_x, torch.nan)  # a test image that is looked at is an error
    return dataclasses.replace(made, splits=dataclasses.replace(made.splits, test_x=unread))


def test_a_search_finds_better_values_and_goes_on(tmp_path, monkeypatch):
    found = tune(study(), 4, tmp_path)
    ascent, masking = (found["methods"][name] for name in COMPARED)
    assert ascent["tried"][0]["values"] == {"lr": 2e-4}
    assert len({row["values"]["lr"] for row in ascent["tried"]}) == 4
    assert all(2e-5 <= row["values"]["lr"] <= 2e-3 for row in ascent["tried"])
    assert ascent["gap_after"] == min(row["gap"] for row in ascent["tried"]) < ascent["gap_before"]
    assert "lr=0.0002" in ascent["before"]
    assert "lr=0.0002" not in ascent["after"]
    assert len(masking["tried"]) == 1  # it has no number to search
    assert masking["before"] == masking["after"]
    assert table(found).row_count == 2
    monkeypatch.setattr(RunStore, "save", lambda *_: pytest.fail("a finished trial was made again"))
    assert json.dumps(tune(study(), 4, tmp_path)) == json.dumps(found)


def test_held_out_images_are_the_last_of_the_training_images():
    whole = study()
    part = held_out(whole)
    kept = len(part.splits.train_y)
    assert kept == round(0.9 * len(whole.splits.train_y))
    assert torch.equal(torch.cat([part.splits.train_x, part.splits.test_x]), whole.splits.train_x)
    assert tuning.SEED > 100


def test_numbers_of_methods():
    scrub = SCRUB(epochs=1, lr=1e-3, max_lr=2e-3)
    assert numbers(scrub) == {"lr": 1e-3, "max_lr": 2e-3, "alpha": 0.5, "gamma": 1.0}
    assert with_numbers(scrub, {"lr": 0.5}).lr == 0.5
    both = Pipeline([RandomPerturbation(0.2), FineTune(epochs=1, lr=1e-3)])
    assert numbers(both) == {"0.beta": 0.2, "1.lr": 1e-3}
    changed = with_numbers(both, {"0.beta": 0.1, "1.lr": 1e-2})
    assert (changed.stages[0].beta, changed.stages[1].lr) == (0.1, 1e-2)
    assert numbers(SSD(alpha=10)) == {"alpha": 10.0, "lam": 1.0}
    assert numbers(FineTune(epochs=3)) == {"lr": 1e-3}  # epochs are no number to search


@dataclasses.dataclass
class Fade(Method):
    """A method of a user's, whose strength has a name of its own."""

    _strength = "length"
    length: float | str = "auto"
    rounds: int = 3


def test_every_method_with_a_number_for_its_strength_is_tuned(tmp_path, monkeypatch):
    made = {**METHODS, "fade": Fade}
    strengths = {name: kind._strength for name, kind in made.items() if kind._strength not in (None, "epochs")}
    assert strengths["first-order"] == "tau"
    chosen = {name: made[name](**{strength: 0.3}) for name, strength in strengths.items()}
    chosen |= {name: kind() for name, kind in made.items() if name not in strengths}
    chosen |= {"neg-grad": NegGrad(weight=0.99), "rum": RUM()}
    tried = []

    def pretend(_, name, method):
        tried.append((name, numbers(method)))
        return {"measures": {"gap": 1 / len(tried)}, "applied": True}

    monkeypatch.setattr(SeedTrials, "trial", pretend)
    found = tune(dataclasses.replace(study(), methods=chosen), 5, tmp_path)["methods"]
    for name, strength in strengths.items():
        assert len({row["values"][strength] for row in found[name]["tried"]}) == 5, name
        assert found[name]["tried"][0]["values"] == numbers(chosen[name])
    assert [name for name in found if len(found[name]["tried"]) == 1] == ["auto"]  # all others have a number
    for field, name in (("ratio", "fisher-masking"), ("weight", "neg-grad")):
        values = [row["values"][field] for row in found[name]["tried"]]
        assert max(values) <= 1
        assert min(values) >= values[0] / 10
