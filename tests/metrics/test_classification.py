import pytest
import torch
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import precision_recall_fscore_support
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from unlearnx.metrics import accuracy, confusion_matrix, interclass_confusion, mean_loss, per_class_report, predict


@pytest.fixture
def study():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 4)).train()
    return model, torch.randn(50, 4), torch.randint(3, (50,))  # class 3 has no labels


def test_against_scikit_learn(study):
    model, x, y = study
    predicted = predict(model, (x, y), batch_size=7)
    assert torch.equal(predicted, model.eval()(x).argmax(1))
    assert accuracy(model, (x, y)) == pytest.approx((predicted == y).float().mean().item())
    matrix = confusion_matrix(model, (x, y), classes=4)
    assert (matrix.numpy() == sklearn_confusion(y, predicted, labels=range(4))).all()
    report = per_class_report(model, (x, y), classes=4)
    precision, recall, f1, support = precision_recall_fscore_support(y, predicted, labels=range(4), zero_division=0)
    for ours, theirs in zip(
        (report.precision, report.recall, report.f1, report.support), (precision, recall, f1, support), strict=True
    ):
        assert ours.tolist() == pytest.approx(theirs.tolist())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_mean_loss_does_not_depend_on_batches(study, reduction):
    model, x, y = study
    expected = F.cross_entropy(model.eval()(x), y).item()
    for batch_size in (1, 7, 50):
        loss = mean_loss(model, lambda o, t: F.cross_entropy(o, t, reduction=reduction), (x, y), batch_size=batch_size)
        assert loss == pytest.approx(expected, rel=1e-5)


def test_loaders_that_shuffle(study):
    model, x, y = study
    loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    assert accuracy(model, loader) == accuracy(model, (x, y))
    assert torch.equal(confusion_matrix(model, loader, classes=4), confusion_matrix(model, (x, y), classes=4))


def test_an_error_leaves_no_mode_behind(study):
    model, x, y = study
    with pytest.raises(ValueError, match="data: expected labels that loss_fn takes"):
        mean_loss(model, F.cross_entropy, (x, y + 10))
    assert torch.is_grad_enabled()
    assert all(m.training for m in model.modules())


def test_modes_are_given_back(study):
    model, x, y = study
    model[2].eval()
    accuracy(model, (x, y))
    assert [m.training for m in model.modules()] == [True, True, True, False, True]


def test_interclass_confusion(stored):
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    predicted = torch.tensor([0, 1, 2, 0, 1, 0, 1, 2])
    model, data = stored(F.one_hot(predicted, 3).float(), labels)
    assert interclass_confusion(model, data, (0, 1), batch_size=3) == pytest.approx(2 / 5)
    assert interclass_confusion(model, data, (1, 0)) == pytest.approx(2 / 5)
    assert interclass_confusion(model, data, (0, 2)) == pytest.approx(2 / 6)
    perfect, _ = stored(F.one_hot(labels, 3).float())
    assert interclass_confusion(perfect, data, (0, 1)) == 0
    with pytest.raises(ValueError, match=r"classes is \(1, 1\), expected two different classes"):
        interclass_confusion(model, data, (1, 1))
    with pytest.raises(ValueError, match=r"classes is \(3, 4\), expected two from 0 to 2"):
        interclass_confusion(model, data, (3, 4))
