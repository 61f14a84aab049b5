import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from unlearnx import Request
from unlearnx._data import materialize
from unlearnx.curvature import FrozenPrefix
from unlearnx.methods.frozen_features import request_on_features


def data(n=10):
    return torch.randn(n, 4), torch.arange(n) % 3


def test_remove():
    x, y = data()
    request = Request.remove((x, y), [7, 2])
    assert request.forget.tolist() == [2, 7]
    assert request.retain.tolist() == [0, 1, 3, 4, 5, 6, 8, 9]
    assert request.correction is None
    assert torch.equal(materialize(request.forget_set)[0], x[[2, 7]])
    assert torch.equal(materialize(request.target)[1], y[request.retain])


def test_remove_class():
    x, y = data()
    for dataset in ((x, y), TensorDataset(x, y), DataLoader(TensorDataset(x, y), batch_size=3, shuffle=True)):
        assert Request.remove_class(dataset, 1).forget.tolist() == [1, 4, 7]


def test_correct_finds_changed_labels_and_features():
    x, y = data()
    x_new, y_new = x.clone(), y.clone()
    x_new[3, 1] += 1
    y_new[5] = 0
    request = Request.correct((x, y), (x_new, y_new))
    assert request.forget.tolist() == [3, 5]
    assert torch.equal(materialize(request.correction)[0], x_new[[3, 5]])
    assert materialize(request.forget_set)[1].tolist() == y[[3, 5]].tolist()
    assert request.target is request.corrected
    assert not request.labels_only
    assert Request.correct((x, y), (x.clone(), y_new)).labels_only


def test_features_of_a_request():
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).eval()
    x, y = data()
    frozen_prefix = FrozenPrefix(model, "last:2", (x, y))
    x_new, y_new = x.clone(), y.clone()
    x_new[3] += 1
    y_new[5] = 0
    request = request_on_features(Request.correct((x, y), (x_new, y_new)), frozen_prefix)
    assert request.forget.tolist() == [3, 5]
    torch.testing.assert_close(materialize(request.dataset)[0], frozen_prefix.prefix(x))
    torch.testing.assert_close(materialize(request.target)[0], frozen_prefix.prefix(x_new))
    assert torch.equal(materialize(request.target)[1], y_new)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, y: Request.remove((x, y), []), "indices: is empty"),
        (lambda x, y: Request.remove((x, y), [1, 10]), "indices: 10 is out of range for 10 samples"),
        (lambda x, y: Request.remove((x, y), [-1]), "indices: -1 is out of range"),
        (lambda x, y: Request.remove((x, y), [4, 4]), "indices: sample 4 is given twice"),
        (lambda x, y: Request.remove((x, y), range(10)), "indices: contains all 10 samples"),
        (lambda x, y: Request.remove((x, y), y > 0), "indices: is a boolean mask"),
        (lambda x, y: Request.remove((x[:0], y[:0]), [0]), "dataset: is empty"),
        (lambda x, y: Request.remove_class((x, y), 5), r"no sample has label 5; the labels are \[0, 1, 2\]"),
        (
            lambda x, y: Request.remove_class((x, y[:, None]), 1),
            r"labels of shape \[10, 1\], expected one label per sample",
        ),
        (lambda x, y: Request.correct((x, y), (x.clone(), y)), "corrected: equals dataset"),
        (lambda x, y: Request.correct((x, y), (x[:3], y[:3])), "corrected: has 3 samples, expected 10"),
        (lambda x, y: Request.correct((x, y), (x[:, :2], y)), r"samples of shape \[2\], expected \[4\]"),
    ],
)
def test_clear_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make(*data())


@pytest.mark.parametrize(
    "indices", [{3, 1}, range(1, 4, 2), (1, 3), np.array([3, 1]), torch.tensor([[1], [3]]), {1: 0, 3: 0}.keys()]
)
def test_collections_of_integers(indices):
    x = torch.zeros(6, 2)
    assert Request.remove((x, torch.arange(6)), indices).forget.tolist() == [1, 3]


@pytest.mark.parametrize(
    "indices",
    [
        [0.5, 1.7],
        [1.0, 2.0],
        "12",
        b"12",
        {1: 2},
        (i for i in range(3)),
        None,
        3,
        ["1"],
        [None],
        [[1], [2, 3]],
        1.5,
        [2**70],
    ],
)
def test_what_is_no_collection_of_integers(indices):
    with pytest.raises(ValueError, match=r"^indices: "):
        Request.remove((torch.zeros(6, 2), torch.arange(6)), indices)


@pytest.mark.parametrize("c", ["1", [1, 2], 1.0, None, True])
def test_what_is_no_class(c):
    with pytest.raises(TypeError, match=r"^c is .*, expected an integer$"):
        Request.remove_class((torch.zeros(6, 2), torch.arange(6)), c)
