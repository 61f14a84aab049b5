import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F

from unlearnx.attribution import ekfac_influence
from unlearnx.metrics import lds, losses_of_subsets


def test_is_spearmans_correlation():
    torch.manual_seed(0)
    scores, subsets = torch.randn(3, 30), torch.rand(40, 30) < 0.5
    losses = torch.randint(5, (40, 3)).double()  # with ties
    expected = [spearmanr((subsets.double() @ scores.double().T)[:, q], losses[:, q]).statistic for q in range(3)]
    torch.testing.assert_close(lds(scores, subsets, losses), torch.tensor(expected), rtol=1e-10, atol=1e-12)


def test_shapes_are_checked():
    scores, subsets, losses = torch.randn(3, 30), torch.rand(4, 30) < 0.5, torch.randn(4, 3)
    for bad in (subsets[:, 1:], subsets[0]):
        with pytest.raises(ValueError, match="subsets: has shape"):
            lds(scores, bad, losses)
    for bad in (losses.T, losses[:1]):
        with pytest.raises(ValueError, match=r"losses: has shape .* expected \[4, 3\]"):
            lds(scores, subsets, bad)
    pair = torch.randn(10, 2), torch.zeros(10)
    with pytest.raises(ValueError, match="fraction is 1, expected a number with which a subset has 1 to 9 samples"):
        losses_of_subsets(lambda part: None, F.cross_entropy, pair, pair, fraction=1)


def test_subsets_and_influence_of_a_convex_model():
    """For ridge-like softmax regression influence predicts what training without a half of the data does."""
    torch.manual_seed(0)
    x = torch.randn(80, 4)
    y = (x[:, 0] + 0.7 * torch.randn(80) > 0).long()
    queries = torch.randn(6, 4), torch.randint(2, (6,))

    def train(data):
        model = nn.Linear(4, 2)
        nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
        optimiser = torch.optim.LBFGS(model.parameters(), max_iter=100)

        def closure():
            optimiser.zero_grad()
            loss = F.cross_entropy(model(data.tensors[0]), data.tensors[1])
            loss = loss + 1e-2 * model.weight.square().sum()
            loss.backward()
            return loss

        optimiser.step(closure)
        return model

    generator = torch.Generator().manual_seed(0)
    subsets, losses = losses_of_subsets(train, F.cross_entropy, (x, y), queries, subsets=40, generator=generator)
    assert (subsets.sum(1) == 40).all()
    model = train(torch.utils.data.TensorDataset(x, y)).eval()
    scores = ekfac_influence(model, F.cross_entropy, (x, y), queries, damping=2e-2)
    assert lds(scores, subsets, losses).mean() > 0.8
