import dataclasses
import json
import math

import pytest
import torch

from unlearnx.curvature import ConjugateGradient, LiSSA, NystromPCG
from unlearnx.experiments.forget.methods import digits_methods
from unlearnx.experiments.recipes import from_recipe, to_recipe
from unlearnx.methods import SSD, FineTune, FirstOrder, Method, Pipeline, RandomPerturbation, Retrain, SecondOrder
from unlearnx.models import Training, digits_cnn, last_character_loss

CASES = [
    SSD(alpha=3.0, params="last:4", autocast=torch.bfloat16, seed=7),
    FineTune(epochs=2, params=["0.weight", "0.bias"], anchor=math.inf),
    FirstOrder(loss_fn=last_character_loss),
    SecondOrder(LiSSA(damping=0.1, batch_size=None), kind="hessian"),
    SecondOrder(ConjugateGradient(iterations=5)),
    SecondOrder(NystromPCG(rank=3), damping=0.5),
    Retrain(factory=digits_cnn),
    Pipeline([RandomPerturbation(beta=0.1), FineTune(epochs=2)], max_increase=0.25, seed=3),
    *digits_methods(1).values(),
    *digits_methods(None).values(),
    Training(3, autocast=torch.float16),
    [SSD(), [FineTune()], None, 1.5, "x"],
]


@pytest.mark.parametrize("value", CASES, ids=lambda v: type(v).__name__)
def test_values_come_back(value):
    text = json.dumps(to_recipe(value), allow_nan=False)
    assert from_recipe(json.loads(text)) == value


def test_recipe_holds_every_argument_that_matters():
    recipe = to_recipe(SSD(alpha=3.0, progress=True))
    assert recipe["method"] == "SSD"
    assert recipe["arguments"].keys() == {f.name for f in dataclasses.fields(SSD)} - {"progress"}
    assert recipe["arguments"]["alpha"] == 3.0
    assert recipe["arguments"]["loss_fn"] == {"function": "torch.nn.functional.cross_entropy"}


def test_a_stage_that_cannot_be_written_is_named():
    with pytest.raises(ValueError, match=r"both\.stages\[1\]\.loss_fn is <function"):
        to_recipe(Pipeline([SSD(), FineTune(loss_fn=lambda output, y: output)]), "both")


def nowhere():
    @dataclasses.dataclass
    class Unknown(Method):
        """Cannot be imported by its name."""

    return Unknown()


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (FineTune(loss_fn=lambda output, y: output), r"ssd\.loss_fn is <function"),
        (Retrain(factory=torch.nn.Flatten), r"ssd\.factory is <class"),
        (SSD(loss_fn=nowhere()), r"ssd\.loss_fn is .*Unknown"),
        (nowhere(), "ssd is .*Unknown"),
        ([SSD(), torch.zeros(1)], r"ssd\[1\] is tensor"),
    ],
)
def test_what_cannot_be_written_is_named(value, named):
    with pytest.raises(ValueError, match=f"{named}.*which a recipe cannot hold"):
        to_recipe(value, "ssd")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"method": "Teleport", "arguments": {}}, "unlearnx has nothing for"),
        ({"method": "__doc__", "arguments": {}}, "unlearnx has nothing for"),
        ({"function": "os.system"}, "unlearnx has nothing for"),
        ({"dtype": "float33"}, "unlearnx has nothing for"),
        ({"method": "SSD", "arguments": {"colour": 1}}, "arguments of SSD do not fit"),
        ({"method": "SSD"}, "arguments of SSD do not fit"),
        ({"method": "SSD", "arguments": {"alpha": -1}}, "alpha is -1"),
    ],
)
def test_recipes_that_are_not_understood(recipe, message):
    with pytest.raises(ValueError, match=message):
        from_recipe(recipe)
