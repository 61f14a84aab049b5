import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unlearnx.metrics import RelearnTime, relearn_time


@pytest.fixture
def study():
    """A model that knows the forget set, a retrained and an unlearned one that do not, and the set."""
    x = torch.randn(60, 6)
    y = (x @ torch.randn(6, 3)).argmax(1)
    original = nn.Linear(6, 3)
    optimizer = torch.optim.Adam(original.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(original(x), y).backward()
        optimizer.step()
    original.zero_grad()
    return nn.Linear(6, 3), original, nn.Linear(6, 3), (x, y)


def steps_by_hand(model, target, x, y, lr, batch_size, max_steps, seed):
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    rows = torch.cat([torch.randperm(len(x), generator=generator) for _ in range(max_steps)])
    count = -(-len(x) // batch_size)
    for step in range(max_steps + 1):
        if F.cross_entropy(model(x), y) <= target:
            return step
        epoch, batch = divmod(step, count)
        index = rows[epoch * len(x) :][: len(x)][batch * batch_size :][:batch_size]
        optimizer.zero_grad()
        F.cross_entropy(model(x[index]), y[index]).backward()
        optimizer.step()
    return math.inf


def test_against_a_loop(study):
    model, original, retrained, (x, y) = study
    settings = dict(lr=0.05, batch_size=16, max_steps=100, seed=3)
    target = F.cross_entropy(original(x), y).item() + 0.2
    expected = [steps_by_hand(m, target, x, y, **settings) for m in (model, retrained)]
    result = relearn_time(model, original, retrained, (x, y), margin=0.2, **settings)
    assert [result.steps, result.reference_steps] == expected
    assert 3 < result.steps < 100
    assert result.ratio == expected[0] / expected[1]


def test_equal_models(study):
    model, original, _, data = study
    assert relearn_time(model, original, model, data, lr=0.05).ratio == 1
    nothing_forgotten = relearn_time(original, original, model, data, lr=0.05)
    assert nothing_forgotten.steps == 0
    assert nothing_forgotten.ratio == 0


def test_ratios_without_a_quotient(study):
    model, original, retrained, data = study
    capped = relearn_time(model, original, retrained, data, lr=1e-6, max_steps=2)
    assert capped == RelearnTime(math.inf, math.inf)
    assert math.isnan(capped.ratio)
    assert RelearnTime(math.inf, 5).ratio == math.inf
    assert RelearnTime(3, 0).ratio == math.inf
    assert RelearnTime(0, 0).ratio == 1


def test_a_training_that_diverges_does_not_get_there(study):
    model, original, retrained, (x, y) = study
    assert relearn_time(model, original, retrained, (1000 * x, y), lr=1e37, margin=0).steps == math.inf


def test_the_models_stay_as_they_were():
    """BatchNorm keeps its statistics, even where a batch is a single sample; frozen parameters stay frozen."""
    models = [nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)) for _ in range(3)]
    models[0].train()
    models[1].eval()
    models[0][0].requires_grad_(False)
    before = [copy.deepcopy(m.state_dict()) for m in models]
    data = torch.randn(7, 4), torch.randint(3, (7,))
    modes, random = [[m.training for m in model.modules()] for model in models], torch.get_rng_state()
    settings = dict(batch_size=1, lr=0.01, max_steps=30)
    with torch.no_grad():
        result = relearn_time(*models, data, **settings)
    assert result == relearn_time(*models, data, **settings)
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(t, state[k]) for k, t in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())
    assert [[m.training for m in model.modules()] for model in models] == modes
    assert [p.requires_grad for p in models[0].parameters()] == [False] * 2 + [True] * 4
    assert torch.equal(random, torch.get_rng_state())


def test_errors(study):
    model, original, retrained, data = study
    with pytest.raises(ValueError, match="margin is -1, expected a finite number >= 0"):
        relearn_time(model, original, retrained, data, margin=-1)
    with pytest.raises(ValueError, match="lr is nan, expected a number"):
        relearn_time(model, original, retrained, data, lr=math.nan)
    with pytest.raises(ValueError, match="max_steps is 0, expected at least 1"):
        relearn_time(model, original, retrained, data, max_steps=0)
    with torch.no_grad():
        original.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="original: its loss on the forget set is nan, expected a finite number"):
        relearn_time(model, original, retrained, data)
