"""The network of the CIFAR-10 study at its real size: errors against a float64 loop, threads, batch sizes, bfloat16."""

import pytest
import torch
from torch.nn import functional as F

from tests.curvature.zoo import sample_gradients
from tests.helpers import threads
from unlearnx.curvature import fisher_diagonal
from unlearnx.models import vgg_cifar10


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    model, x, y = vgg_cifar10().eval(), torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
    wide = vgg_cifar10().eval().double()
    wide.load_state_dict(model.state_dict())
    rows = sample_gradients(wide, F.cross_entropy, x.double(), y)
    return model, wide, x, y, {name: r.square().mean(0) for name, r in rows.items()}


def error(got, expected):
    return max(((got[k].double() - e).norm() / e.norm()).item() for k, e in expected.items())


def test_float64(problem):
    _, wide, x, y, expected = problem
    assert error(fisher_diagonal(wide, F.cross_entropy, (x.double(), y)), expected) <= 1e-9


def test_float32(problem):
    """ReLU and max-pooling have kinks: any correct float32 method is about 1.4e-4 away on this network."""
    model, _, x, y, expected = problem
    assert error(fisher_diagonal(model, F.cross_entropy, (x, y)), expected) <= 3e-4


def test_bfloat16(problem):
    model, _, x, y, expected = problem
    got = fisher_diagonal(model, F.cross_entropy, (x, y), compute_dtype=torch.bfloat16)
    distance = sum((got[k].double() - e).square().sum() for k, e in expected.items()).sqrt()
    assert distance <= 2e-2 * sum(e.square().sum() for e in expected.values()).sqrt()


def test_equal_bits_on_any_number_of_threads(problem):
    model, _, x, y, _ = problem
    results = []
    for n in (1, 2):
        with threads(n):
            results.append(fisher_diagonal(model, F.cross_entropy, (x, y)))
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


def test_batch_sizes_agree_to_rounding(problem):
    model, _, x, y, _ = problem
    whole = fisher_diagonal(model, F.cross_entropy, (x, y), batch_size=8)
    for batch_size in (1, 7, 64):
        assert error(fisher_diagonal(model, F.cross_entropy, (x, y), batch_size=batch_size), whole) <= 1e-6
