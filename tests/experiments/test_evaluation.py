import copy

import pytest
import torch
from torch import nn

from unlearnx import metrics
from unlearnx.experiments.evaluation import Evaluation, Sets
from unlearnx.losses import cross_entropy
from unlearnx.models import Training


class Counted(nn.Module):
    """A linear model that counts the samples it reads; it returns scores, or an object that has them."""

    def __init__(self, returns_tensor, read=None):
        super().__init__()
        self.linear, self.returns_tensor = nn.Linear(4, 3), returns_tensor
        self.count = [].append if read is None else read.append

    def forward(self, a):
        self.count(len(a))
        found = self.linear(a)
        return found if self.returns_tensor else {"logits": found}


@pytest.fixture
def sets():
    train, test = (({"a": torch.randn(n, 4)}, torch.arange(n) % 3) for n in (40, 30))
    return Sets.make(train, test, torch.arange(0, 40, 3), 0)


@pytest.mark.parametrize("returns_tensor", [True, False])
def test_measures_are_those_of_the_models_themselves(sets, returns_tensor):
    read = []
    model, other = Counted(returns_tensor, read), Counted(returns_tensor, read)
    evaluation = Evaluation(sets, batch_size=7, returns_tensor=returns_tensor)
    found = evaluation.accuracies(model) | evaluation.losses(model, cross_entropy)
    distance, warning = evaluation.distance(model, other), evaluation.over_forgetting(model, other)
    attack = evaluation.attack(model, "ssd", sets.all_test)
    assert sum(read) == 2 * (40 + 30)
    assert evaluation.sizes == {"forget": 14, "retain": 26, "test": 20, "test_forgotten": 10}
    x, y = (torch.cat(parts) for parts in zip(*((x["a"], y) for x, y in sets.data), strict=True))

    def data(indices):
        return {"a": x[indices]}, y[indices]

    for part, indices in sets.parts.items():
        assert found[f"{part}_accuracy"] == metrics.accuracy(model, data(indices))
        assert found[f"{part}_loss"] == pytest.approx(metrics.mean_loss(model, cross_entropy, data(indices)), rel=1e-6)
    forget, retain = (data(sets.parts[part]) for part in ("forget", "retain"))
    assert distance["activation_distance"] == pytest.approx(metrics.activation_distance(model, other, forget), rel=1e-5)
    assert distance["js"] == pytest.approx(metrics.js_divergence(model, other, forget), rel=1e-4)
    assert warning == metrics.over_forgetting(model, other, forget)
    unseen = data(torch.arange(40, 70))
    assert attack == metrics.mia(model, forget=forget, retain=retain, test=unseen, protocol="ssd")


def test_sets_without_samples_are_not_measured():
    data = {"a": torch.randn(6, 4)}, torch.ones(6, dtype=torch.int64)
    evaluation = Evaluation(Sets.make(data, data, torch.tensor([0]), 0))
    assert evaluation.accuracies(Counted(True)).keys() == {"forget_accuracy", "retain_accuracy", "test_accuracy"}


def test_scores_of_lower_precision_are_kept_as_numbers_of_single_precision(sets):
    plain, cast = (Evaluation(sets, autocast=dtype).scores(Counted(True)) for dtype in (None, torch.bfloat16))
    assert plain.rows.dtype == cast.rows.dtype == torch.float32


class Known(nn.Module):
    """A network of two layers, of which a linear probe sees the hidden states."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, a):
        return self.head(self.body(a).tanh())


def test_what_comes_back():
    """Each number by hand: accuracies of rounded weights, after a few steps on some samples, and of a ridge."""
    torch.manual_seed(0)
    train = {"a": torch.randn(60, 4)}, torch.arange(60) % 3
    sets, model = Sets.make(train, None, torch.arange(0, 60, 3), 0), Known()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    found = Evaluation(sets).come_back(model, cross_entropy, seed=4)
    assert list(found) == ["rounded_8", "rounded_4", "relearned_1", "relearned_10", "relearned_100", "probe"]
    x, y = sets.samples("forget")
    for bits in (8, 4):
        assert found[f"rounded_{bits}"] == metrics.accuracy(metrics.rounded_weights(model, bits), (x, y))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(4))
    for k in (1, 10):
        twin, chosen, rest = copy.deepcopy(model), order[:k].sort().values, order[10:]
        training = Training(10, 1e-3, k, weight_decay=0.0, loss_fn=cross_entropy, seed=4)
        training.run(twin, ({"a": x["a"][chosen]}, y[chosen]))
        assert found[f"relearned_{k}"] == metrics.accuracy(twin, ({"a": x["a"][rest]}, y[rest]))
    assert found["relearned_100"] is None  # 20 samples are too few
    assert 0 <= found["probe"] <= 1
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert found == Evaluation(sets, batch_size=7).come_back(model, cross_entropy, seed=4)


def test_what_is_hidden_by_the_last_layer_comes_back():
    """A class that the last layer alone does not name is found by a probe."""
    torch.manual_seed(0)
    y = torch.arange(300) % 3
    train = {"a": 3 * torch.eye(3, 4)[y] + 0.3 * torch.randn(300, 4)}, y
    sets, model = Sets.make(train, None, (y == 0).nonzero().flatten(), 0), Known()
    Training(60, 1e-2, 50).run(model, train)
    with torch.no_grad():
        model.head.bias[0] -= 40
    evaluation = Evaluation(sets)
    assert evaluation.accuracies(model)["forget_accuracy"] < 0.1
    found = evaluation.come_back(model, cross_entropy, seed=0)
    assert found["probe"] > 0.95
    assert found["rounded_8"] < 0.2


def test_a_model_without_hidden_states_has_no_probe(sets):
    assert Evaluation(sets).come_back(Counted(True), cross_entropy, seed=0)["probe"] is None
