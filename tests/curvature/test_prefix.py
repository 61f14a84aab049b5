import pytest
import torch
from torch import nn
from zoo import ZOO, build

from unlearnx.curvature import FrozenPrefix


@pytest.mark.parametrize("name", ZOO)
def test_head_after_prefix_is_the_model(name):
    model, x, y = build(name)
    cut = FrozenPrefix(model, "last:2")
    features, labels = cut.features((x, y), batch_size=4).tensors if cut.prefix else (x, y)
    torch.testing.assert_close(cut.head(features), model(x))
    assert torch.equal(labels, y)


@pytest.mark.parametrize("name", ["mlp", "cnn", "embedding", "residual", "unknown", "attention"])
def test_there_is_a_prefix(name):
    model, _, _ = build(name)
    cut = FrozenPrefix(model, "last:2")
    assert cut.prefix is not None
    last = list(dict(model.named_parameters()))[-2:]
    assert [n for n, _ in cut.head.named_parameters()] == last
    assert all(cut.head.get_parameter(n) is model.get_parameter(n) for n in last)


def test_all_parameters_leave_no_prefix():
    model, x, y = build("mlp")
    cut = FrozenPrefix(model, None)
    assert cut.prefix is None
    assert cut.head is model
    assert cut.features((x, y))[0] is x


class Dynamic(nn.Module):
    """Control flow that cannot be traced."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = self.a(x)
        if h.sum() > 0:
            h = h.relu()
        return self.b(h)


class SkipsAhead(nn.Module):
    """The head reads the input besides the features."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.b(self.a(x) + x).sum(-1, keepdim=True) + self.b(x)


@pytest.mark.parametrize("model", [Dynamic(), SkipsAhead()], ids=["dynamic", "skips ahead"])
def test_models_that_cannot_be_cut_stay_whole(model):
    cut = FrozenPrefix(model, "last:2")
    assert cut.prefix is None
    assert cut.head is model


def test_modes_are_kept():
    model = nn.Sequential(nn.Linear(6, 5), nn.Dropout(), nn.Linear(5, 3), nn.Dropout().eval())
    modes = [m.training for m in model.modules()]
    FrozenPrefix(model, "last:2")
    assert [m.training for m in model.modules()] == modes


def test_features_in_bfloat16():
    model, x, y = build("mlp")
    model, x = model.float(), x.float()
    cut = FrozenPrefix(model, "last:2")
    exact, fast = cut.features((x, y)).tensors[0], cut.features((x, y), dtype=torch.bfloat16).tensors[0]
    assert fast.dtype == torch.bfloat16
    assert model[0].weight.dtype == torch.float32
    torch.testing.assert_close(fast.float(), exact, rtol=2e-2, atol=2e-2)
