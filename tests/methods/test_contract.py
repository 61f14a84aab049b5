"""Every method, those of plug-ins that are installed included, keeps what all methods promise."""

import math
import re
from dataclasses import dataclass, fields, replace

import pytest
import torch

from unlearnx.experiments.named_methods import named_method, plugins
from unlearnx.methods import METHODS, RUM, SSD, FineTune, Method, Pipeline, RandomPerturbation, SalUn
from unlearnx.testing import METHOD_CHECKS, check_method, refuses_harm

OTHERS = {
    "ssd, label-free": SSD(fisher_type="label_free"),
    "pipeline": Pipeline([RandomPerturbation(0.5), FineTune(epochs=2)]),
    "rum": RUM([FineTune(epochs=1), SalUn(epochs=1)]),
}
QUICK = {"epochs": 1, "steps": 1}


def called(name):
    """The method with its defaults, but for few epochs and steps."""
    if name in OTHERS:
        return OTHERS[name]
    method = named_method("methods", name)()
    return replace(method, **{field: few for field, few in QUICK.items() if field in {f.name for f in fields(method)}})


@pytest.mark.parametrize("name", [*METHODS, *plugins(), *OTHERS])
@pytest.mark.parametrize("check", METHOD_CHECKS, ids=lambda check: check.__name__)
def test_every_method(name, check):
    if name == "retrain" and check is refuses_harm:
        pytest.skip("the reference is applied whatever it does")
    check(called(name))


@pytest.mark.parametrize("name", [name for name, kind in METHODS.items() if kind._strength == "epochs"])
def test_those_that_find_their_epochs(name):
    refuses_harm(METHODS[name]())


@dataclass
class Shrink(Method):
    """Keeps all promises; the classes below break one each."""

    def _apply(self, work, info):
        for name, p in work.model.named_parameters():
            p.data.mul_(0.99 if name in work.names else 1.0)


class InPlace(Shrink):
    def __call__(self, model, request):
        outcome = super().__call__(model, request)
        with torch.no_grad():
            next(model.parameters()).add_(1)
        return outcome


class ToTraining(Shrink):
    def __call__(self, model, request):
        outcome = super().__call__(model, request)
        outcome.model.train()
        return outcome


class SameModel(Shrink):
    def __call__(self, model, request):
        outcome = super().__call__(model, request)
        outcome.model, outcome.applied, outcome.reason = model, False, "nothing"
        return outcome


class Boasting(Shrink):
    def __call__(self, model, request):
        return replace(super().__call__(model, request), applied=False, reason="modesty")


class Global(Method):
    def _apply(self, work, info):
        for p in work.model.parameters():
            p.data.add_(1e-3 * torch.randn_like(p))


class Harmful(Shrink):
    def _final_loss(self, work):
        return work.corrected_loss()


class Untold(Shrink):
    def __call__(self, model, request):
        return replace(super().__call__(model, request), loss_after=0.0)


class Everything(Method):
    def _names(self, model):
        return [name for name, _ in model.named_parameters()]

    def _apply(self, work, info):
        for p in work.model.parameters():
            p.data.mul_(0.99)


class Data(Shrink):
    def _apply(self, work, info):
        super()._apply(work, info)
        work.request.dataset.tensors[0].zero_()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (InPlace(), "InPlace does not leave the values of the model that it is given as they were"),
        (Data(), "Data does not leave the data as they were"),
        (ToTraining(), "ToTraining does not return a model with the modes of the one it is given"),
        (SameModel(), "SameModel does not return a model that shares no memory with the one that it is given"),
        (Boasting(), "Boasting does not say applied=True, as the parameters have it"),
        (Global(), "Global does not leave torch's own random numbers alone"),
        (Harmful(), "Harmful does not refuse a loss of"),
        (Untold(), "Untold does not say loss_after="),
        (Everything(), "Everything does not leave 1.weight as it was with params=['0.weight', '0.bias']"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_broken_promises_are_named(method, message):
    with pytest.raises(AssertionError, match=re.escape(message)):
        check_method(method)


def test_what_is_checked():
    check_method(Shrink(max_increase=math.inf))
    with pytest.raises(TypeError, match="method is of type type, expected a method, such as"):
        check_method(SSD)
