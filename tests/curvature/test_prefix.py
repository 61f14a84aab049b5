import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.curvature.zoo import ZOO, build
from unlearnx import Request
from unlearnx.curvature import FrozenPrefix, fisher_diagonal, grad_difference
from unlearnx.methods import FirstOrder


@pytest.mark.parametrize("name", ZOO)
def test_head_after_prefix_is_the_model(name):
    model, x, y = build(name)
    frozen_prefix = FrozenPrefix(model, "last:2", (x, y))
    features, labels = frozen_prefix.features((x, y), batch_size=4).tensors if frozen_prefix.prefix else (x, y)
    torch.testing.assert_close(frozen_prefix.head(features), model(x))
    assert torch.equal(labels, y)


@pytest.mark.parametrize("name", ["mlp", "cnn", "embedding", "residual", "unknown", "attention"])
def test_there_is_a_prefix(name):
    model, x, y = build(name)
    frozen_prefix = FrozenPrefix(model, "last:2", (x, y))
    assert frozen_prefix.prefix is not None
    last = list(dict(model.named_parameters()))[-2:]
    assert [n for n, _ in frozen_prefix.head.named_parameters()] == last
    assert all(frozen_prefix.head.get_parameter(n) is model.get_parameter(n) for n in last)


def test_all_parameters_leave_no_prefix():
    model, x, y = build("mlp")
    frozen_prefix = FrozenPrefix(model, None, (x, y))
    assert frozen_prefix.prefix is None
    assert frozen_prefix.head is model
    assert frozen_prefix.features((x, y))[0] is x


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)


class Dynamic(TwoLayers):
    """Control flow that cannot be traced."""

    def forward(self, x):
        h = self.a(x)
        if h.sum() > 0:
            h = h.relu()
        return self.b(h)


class SkipsAhead(TwoLayers):
    """The head reads the input besides the features."""

    def forward(self, x):
        return self.b(self.a(x) + x) + self.b(x)


class TypeDependent(TwoLayers):
    """Computes something else when traced."""

    def forward(self, x):
        h = self.a(x)
        return self.b(h.relu() if isinstance(h, torch.Tensor) else h)


class Overwrites(TwoLayers):
    """The head changes its features in place."""

    def forward(self, x):
        return self.b(self.a(x).add_(self.b.weight.sum()))


class Remembers(TwoLayers):
    """The forward pass changes attributes of the module."""

    def forward(self, x):
        self.seen = self.a(x) + torch.ones(6)
        return self.b(self.seen)


class TakesGradients(TwoLayers):
    """The frozen layer's output is that of a gradient."""

    def forward(self, x):
        with torch.enable_grad():
            h = self.a(x).detach().requires_grad_()
            (slope,) = torch.autograd.grad(h.pow(2).sum(), h)
        return self.b(slope)


class Tied(nn.Module):
    """The decoder's weight is also the embedding's: the embedding is no part of the prefix."""

    def __init__(self):
        super().__init__()
        self.decoder, self.embedding = nn.Linear(6, 3), nn.Linear(6, 3)
        self.up = nn.Linear(3, 6)
        self.embedding.weight = self.decoder.weight

    def forward(self, x):
        return self.decoder(self.up(self.embedding(x)))


@pytest.mark.parametrize("kind", [Dynamic, SkipsAhead, TypeDependent, Overwrites, Remembers, TakesGradients])
def test_models_that_cannot_be_cut_stay_whole(kind):
    model, data = kind(), (torch.randn(9, 6), torch.zeros(9))
    attributes = set(vars(model))
    frozen_prefix = FrozenPrefix(model, "last:2", data)
    assert frozen_prefix.prefix is None
    assert frozen_prefix.head is model
    assert set(vars(model)) == attributes


def test_tied_parameters_stay_together():
    model, data = Tied(), (torch.randn(9, 6), torch.zeros(9))
    assert FrozenPrefix(model, ["decoder.weight"], data).prefix is None


class Optional(TwoLayers):
    """A forward with an optional argument."""

    def forward(self, x, scale=None):
        h = self.a(x)
        return self.b(h if scale is None else h * scale)


def test_optional_arguments_take_their_defaults():
    model, x = Optional(), torch.randn(9, 6)
    frozen_prefix = FrozenPrefix(model, "last:2", (x, x))
    assert frozen_prefix.prefix is not None
    torch.testing.assert_close(frozen_prefix.head(frozen_prefix.prefix(x)), model(x))


class Auxiliary(TwoLayers):
    """A parameter that the output does not depend on."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(6, 2)

    def forward(self, x):
        return self.b(self.a(x).relu())


def test_unused_parameters_have_zero_gradient():
    model, x, y = Auxiliary(), torch.randn(9, 6), torch.randint(3, (9,))
    gradient = grad_difference(model, F.cross_entropy, (x, y), params="last:4")
    assert gradient["unused.weight"].abs().max() == 0
    assert gradient["b.weight"].abs().max() > 0
    fisher = fisher_diagonal(model, F.cross_entropy, (x, y), params="last:4")
    assert fisher["unused.weight"].abs().max() == 0
    assert FirstOrder(params="last:4")(model, Request.correct((x, y), (x, 2 - y))).applied


def test_prefix_runs_in_eval_mode_and_modes_are_kept():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 3), nn.Dropout().eval())
    modes = [m.training for m in model.modules()]
    x = torch.randn(9, 6)
    frozen_prefix = FrozenPrefix(model, "last:2", (x, x))
    features = frozen_prefix.features((x, x)).tensors[0]
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(features, model.eval()[:3](x))
    assert model[1].num_batches_tracked == 0


def test_features_in_bfloat16():
    model, x, y = build("mlp")
    model, x = model.float(), x.float()
    frozen_prefix = FrozenPrefix(model, "last:2", (x, y))
    exact, fast = (
        frozen_prefix.features((x, y)).tensors[0],
        frozen_prefix.features((x, y), dtype=torch.bfloat16).tensors[0],
    )
    assert fast.dtype == torch.float32
    assert model[0].weight.dtype == torch.float32
    assert not torch.equal(fast, exact)
    torch.testing.assert_close(fast, exact, rtol=2e-2, atol=2e-2)
