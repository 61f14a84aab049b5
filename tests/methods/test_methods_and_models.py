"""Every method on every kind of model: it works, or refuses in a sentence of ours; the table in the docs says which."""

import copy
import re
import traceback
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.methods.kinds import KINDS
from tests.models import odd_models as odd
from unlearnx import Request
from unlearnx._batches import count, take
from unlearnx._data import materialize
from unlearnx.methods import METHODS, BadTeacher, Retrain, StochasticTeacher
from unlearnx.methods.untrained import initialise_anew, trained_names

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
SETTINGS = {"fisher-masking": {"ratio": 0.1}}


def request(method, data):
    """A removal; of a method that takes corrections alone, one to the labels of other samples."""
    if method != "idk":
        return Request.remove(data, range(3))
    x, y = materialize(data)
    order = torch.arange(count(y))
    order[:3] += 3
    return Request.correct((x, y), (x, take(y, order)))


def result(method, kind):
    """Whether the method works on the kind of model and samples, or refuses them with an error of ours."""
    torch.manual_seed(0)
    kind = KINDS[kind]
    model = kind.build().eval()
    before = copy.deepcopy(dict(model.state_dict()))
    settings = {"loss_fn": kind.loss_fn, **SETTINGS.get(method, {})}
    try:
        outcome = METHODS[method](**settings)(model, request(method, kind.data()))
    except (ValueError, TypeError) as error:
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        if "/unlearnx/" not in Path(raised_in).as_posix() or not re.match(r"[a-z_]+(:| is) ", str(error)):
            raise
        return "refuses"
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert list(outcome.model.state_dict()) == list(before)
    assert type(outcome.model) is type(model)
    moved = {name for name, p in outcome.model.named_parameters() if not torch.equal(p, before[name])}
    assert bool(moved) == outcome.applied
    assert not any(name in moved and not p.requires_grad for name, p in model.named_parameters())
    assert outcome.applied or outcome.reason
    kind.called(outcome.model)
    return "works"


def table():
    """The table of the page: what happens by kind and by method."""
    lines = PAGE.read_text().partition("\n| method | pair |")[2].partition("\n\n")[0].splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines)
    return {kind: {row[0]: row[k] for row in rows} for k, kind in enumerate(["pair", *head], 1)}


def test_the_table_in_the_docs_has_all_methods_and_kinds():
    assert list(table()) == list(KINDS)
    assert list(table()["pair"]) == [method.__name__ for method in METHODS.values()]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_the_table_in_the_docs_is_what_happens(kind):
    if KINDS[kind].needs is not None:
        pytest.importorskip(KINDS[kind].needs)
    assert {METHODS[name].__name__: result(name, kind) for name in METHODS} == table()[kind]


@pytest.mark.parametrize("method", [Retrain(epochs=1), BadTeacher(epochs=1), StochasticTeacher(epochs=1)])
@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel, odd.compiled])
def test_a_factory_builds_what_cannot_be_initialised(method, wrap):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = wrap(odd.used(odd.old_weight_norm()))
        data = odd.samples(model)
        if isinstance(method, Retrain):  # any network that knows nothing will do as a teacher
            message = r"^model: parameter '.*0.weight_g' of Linear is not initialised.*factory"
            with pytest.raises(ValueError, match=message):
                method(model, Request.remove(data, range(3)))
        method = type(method)(**{**vars(method), "factory": odd.old_weight_norm, "max_increase": 9.0})
        outcome = method(model, Request.remove(data, range(3)))
    assert outcome.applied
    assert list(outcome.model.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        (lambda: nn.Linear(6, 4), ValueError, "^factory: returned a model with no '0.weight', expected"),
        (
            lambda: nn.Sequential(nn.Linear(6, 9)),
            ValueError,
            r"with '0.weight' of shape \[9, 6\], expected .* \[8, 6\]",
        ),
        (lambda: 3, TypeError, "^factory: returned int"),
        (3, TypeError, "^factory is 3, expected a function"),
    ],
)
def test_factories_of_other_models_are_refused(factory, error, message):
    model = odd.network().eval()
    for kind in (Retrain, BadTeacher, StochasticTeacher):
        with pytest.raises(error, match=message):
            kind(factory=factory)(model, Request.remove(odd.samples(model), range(3)))


def test_a_model_that_tells_how_it_was_built_is_built_anew():
    class Configured(nn.Module):
        """As those of HuggingFace."""

        def __init__(self, config):
            super().__init__()
            self.config, self.weight = config, nn.Parameter(torch.randn(6, config["classes"]))

        @classmethod
        def _from_config(cls, config):
            return cls(config)

        def forward(self, x):
            return x @ self.weight

    model = Configured({"classes": 4}).eval()
    data = odd.samples(odd.network())
    for method in (Retrain(epochs=1), BadTeacher(max_increase=9.0), StochasticTeacher(max_increase=9.0)):
        assert method(model, Request.remove(data, range(3))).applied


def test_an_adapter_is_trained_anew_on_what_it_was_put_on():
    pytest.importorskip("peft")
    model = KINDS["LoRA"].build().eval()
    before, names = dict(model.named_parameters()), trained_names(model)
    fresh = copy.deepcopy(model)
    initialise_anew(fresh, None, 0, names=names)
    again = copy.deepcopy(model)
    initialise_anew(again, None, 0, names=names)
    assert names == [name for name in before if "lora" in name]
    for name, p in fresh.named_parameters():
        assert torch.equal(p, before[name]) == (name not in names)
        assert torch.equal(p, again.get_parameter(name))
        assert "lora_B" not in name or not p.any()  # as peft begins: the model does what it did without it
    x, y = KINDS["LoRA"].data()
    request = Request.remove((x, y), range(3))
    found, other = (Retrain(epochs=1)(trained, request).model for trained in (model, fresh))
    torch.testing.assert_close(found(x), other(x))  # nothing is left of what the adapter had learned
    assert type(found) is type(model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", [odd.untracked, lambda: odd.quantised("0"), lambda: odd.network().to("meta")])
def test_other_models_are_refused_by_name_or_taken(method, build, monkeypatch):
    """Statistics of the batch do no harm in training; gradients of single samples are not to be had from them."""
    kind = replace(KINDS["pair"], build=build)
    monkeypatch.setitem(KINDS, "other", kind)
    taken = ("bad-teacher", "energy-alignment", "fine-tune", "gradient-ascent", "neg-grad", "npo", "retrain", "scrub")
    taken += (
        "boundary-shrink",
        "idk",
        "jit",
        "l1-sparse",
        "random-labels",
        "rmu",
        "simnpo",
        "stochastic-teacher",
        "task-vector",
        "unsir",
    )
    trains = build is odd.untracked and method in taken
    assert result(method, "other") == ("works" if trains else "refuses")


def test_calls_inside_of_inference_mode_say_so():
    model = odd.network().eval()
    data = odd.samples(model)
    with torch.inference_mode(), pytest.raises(ValueError, match=r"^model: is called inside torch.inference_mode"):
        METHODS["ssd"]()(model, Request.remove(data, range(3)))
    with torch.inference_mode():
        data = tuple(t.clone() for t in data)
    assert METHODS["fine-tune"](max_increase=9.0)(model, Request.remove(data, range(3))).applied
