import sys

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score
from sklearn.svm import SVC
from torch import nn

from unlearnx.metrics import mia
from unlearnx.models import Training

PROTOCOLS = ["salun", "ssd", "starter_kit"]


@pytest.fixture
def predictions(stored):
    """Scores and labels by set; members are predicted with more confidence. One model that gives them all."""
    sizes, labels, scores = {"forget": 30, "retain": 60, "test": 60}, {}, {}
    for name, n in sizes.items():
        labels[name] = torch.randint(4, (n,))
        scores[name] = torch.randn(n, 4)
        scores[name][torch.arange(n), labels[name]] += {"forget": 1.0, "retain": 2.5, "test": 0.7}[name]
    model, _ = stored(torch.cat(list(scores.values())))
    rows = torch.arange(150).split(list(sizes.values()))
    data = {name: (x, labels[name]) for name, x in zip(sizes, rows, strict=True)}
    logs = {name: log_softmax(scores[name].double().numpy(), axis=1) for name in sizes}
    return model, data, logs, {name: y.numpy() for name, y in labels.items()}


def test_salun_against_scikit_learn(predictions):
    model, data, logs, labels = predictions
    confidence = {k: np.exp(p[np.arange(len(p)), labels[k]])[:, None] for k, p in logs.items()}
    svm = SVC(C=3, gamma="auto", kernel="rbf")
    svm.fit(np.concatenate([confidence["retain"], confidence["test"]]), [1] * 60 + [0] * 60)
    assert mia(model, **data, protocol="salun", batch_size=7) == pytest.approx(
        (svm.predict(confidence["forget"]) == 0).mean()
    )


@pytest.mark.parametrize("protocol", ["salun", "ssd", "starter_kit"])
def test_numpys_random_numbers_go_on_as_before(predictions, protocol):
    model, data, *_ = predictions
    before = np.random.get_state()  # noqa: NPY002
    mia(model, **data, protocol=protocol)
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert np.random.get_state()[2:] == before[2:]  # noqa: NPY002


def test_salun_on_many_samples(stored):
    """Probabilities of four digits, equal ones merged: the same answers but for those that the tolerance decides."""
    n, shift = 2100, {"forget": 5.0, "retain": 7.0, "test": 4.0}
    scores = {name: torch.stack([mean + 4 * torch.randn(n), torch.zeros(n)], 1) for name, mean in shift.items()}
    data = {name: (x, torch.zeros(n).long()) for name, x in zip(shift, torch.arange(3 * n).split(n), strict=True)}
    confidence = {name: t.double().softmax(1)[:, :1].numpy() for name, t in scores.items()}
    svm = SVC(C=3, gamma="auto", kernel="rbf")
    svm.fit(np.concatenate([confidence["retain"], confidence["test"]]), [1] * n + [0] * n)
    expected = (svm.predict(confidence["forget"]) == 0).mean()
    assert 0.05 < expected < 0.95
    assert mia(stored(torch.cat(list(scores.values())))[0], **data) == pytest.approx(expected, abs=0.005)


def test_ssd_against_scikit_learn(predictions):
    model, data, logs, _ = predictions
    entropy = {k: -(np.exp(p) * p).sum(1)[:, None] for k, p in logs.items()}
    regression = LogisticRegression(class_weight="balanced", solver="lbfgs")
    regression.fit(np.concatenate([entropy["retain"], entropy["test"]]), [1] * 60 + [0] * 60)
    assert mia(model, **data, protocol="ssd") == pytest.approx((regression.predict(entropy["forget"]) == 1).mean())


def test_starter_kit_against_scikit_learn(predictions):
    model, data, logs, labels = predictions
    loss = {k: -p[np.arange(len(p)), labels[k]][:, None] for k, p in logs.items()}
    data["test"] = tuple(t[:30] for t in data["test"])  # as many as are to be forgotten: nothing is drawn
    samples, members = np.concatenate([loss["forget"], loss["test"][:30]]), [1] * 30 + [0] * 30
    splits = StratifiedShuffleSplit(n_splits=10, random_state=3)
    expected = cross_val_score(LogisticRegression(), samples, members, cv=splits).mean()
    assert mia(model, **data, protocol="starter_kit", seed=3) == pytest.approx(expected)


def test_the_three_protocols_differ():
    """One model that has learned its forget set by heart, read by the three things that are called MIA.

    Labels are noise, so that everything it gets right beyond chance is memory. The forget set is not told from other
    training data: few of it are "non-members" to one attack, and most "members" to another, while the third, whose
    ideal is 0.5, reports how well training and test data are told apart. No two can stand in one column of a table.
    """
    x, y = torch.randn(240, 20), torch.randint(5, (240,))
    forget, retain, test = ((x[i], y[i]) for i in torch.arange(240).split(80))
    model = nn.Sequential(nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 5))
    Training(epochs=40, lr=1e-2, batch_size=40).run(model, (x[:160], y[:160]))
    salun, ssd, starter_kit = (mia(model, forget=forget, retain=retain, test=test, protocol=p) for p in PROTOCOLS)
    assert salun < 0.2
    assert ssd > 0.6
    assert starter_kit > 0.8
    assert min(abs(salun - ssd), abs(ssd - starter_kit), abs(salun - starter_kit)) > 0.02


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_sizes_that_differ(predictions, protocol):
    """The larger set is drawn from: reproducibly, and differently with another seed."""
    model, data, *_ = predictions
    data["test"] = tuple(t[:20] for t in data["test"])
    value = mia(model, **data, protocol=protocol, seed=1)
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    assert value == mia(model, **data, protocol=protocol, seed=1)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert 0 <= value <= 1
    different = {mia(model, **data, protocol=protocol, seed=seed) for seed in range(8)}
    assert (len(different) > 1) == (protocol != "ssd")


def test_chance(stored):
    """Where members and others are alike, the starting kit's attack guesses, and the balanced ones do about as well."""
    model, (x, _) = stored(torch.randn(1500, 3))
    y = torch.randint(3, (1500,))
    forget, retain, test = ((x[i], y[i]) for i in torch.arange(1500).split(500))
    assert mia(model, forget=forget, retain=retain, test=test, protocol="starter_kit") == pytest.approx(0.5, abs=0.06)
    same = mia(model, forget=test, retain=retain, test=retain, protocol="ssd")  # nothing can be learned
    assert same in (0, 1)


def test_errors(predictions, stored, monkeypatch):
    model, data, *_ = predictions
    with pytest.raises(ValueError, match="protocol is 'loss', expected one of 'salun', 'ssd', 'starter_kit'"):
        mia(model, **data, protocol="loss")
    few = data | {"forget": tuple(t[:9] for t in data["forget"])}
    with pytest.raises(ValueError, match="forget, test: the smaller has 9 samples, expected at least 10"):
        mia(model, **few, protocol="starter_kit")
    impossible, other = stored([[0.0, -torch.inf, 0.0]] * 20, torch.ones(20, dtype=torch.int64))
    with pytest.raises(ValueError, match="forget: some labels have probability 0"):
        mia(impossible, forget=other, retain=other, test=other, protocol="starter_kit")
    for module in ("sklearn.svm", "sklearn.linear_model"):
        monkeypatch.setitem(sys.modules, module, None)
    for protocol in PROTOCOLS:
        with pytest.raises(ImportError, match=r"mia needs scikit-learn: pip install 'unlearnx\[experiments\]'"):
            mia(model, **data, protocol=protocol)
