import pytest
import torch
from torch import nn

from unlearnx import metrics
from unlearnx.experiments.evaluation import Evaluation, Sets
from unlearnx.losses import cross_entropy


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
