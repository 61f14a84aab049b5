"""The digits are scikit-learn's, and so are their splits."""

import pytest
import torch

from unlearnx.data import load_digits


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("test_share", [0.01, 0.2, 1 / 3, 0.5, 0.9])
def test_splits_are_those_of_scikit_learn(test_share, seed):
    datasets = pytest.importorskip("sklearn.datasets")
    from sklearn.model_selection import train_test_split

    x, y = datasets.load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(x, y, test_size=test_share, random_state=seed, stratify=y)
    splits = load_digits(test_share=test_share, seed=seed)
    for images, rows in ((splits.train_x, train_x), (splits.test_x, test_x)):
        expected = (torch.from_numpy(rows).view(-1, 1, 8, 8) - 4.88) / 6.02
        torch.testing.assert_close(images, expected.float(), rtol=1e-6, atol=1e-6)
    assert splits.train_y.tolist() == train_y.tolist()
    assert splits.test_y.tolist() == test_y.tolist()
    assert splits.classes == [str(c) for c in range(10)]


@pytest.mark.parametrize("test_share", [0.0, 1.0, -0.1, 0.999, 1e-4])
def test_shares_that_leave_a_class_out(test_share):
    with pytest.raises(ValueError, match=f"test_share is {test_share}, expected a share of 1,797 images that leaves"):
        load_digits(test_share=test_share)
