import math

import pytest

from unlearnx.metrics import gap, runtime_ratio, tug_of_war

UNLEARNED = {"forget": 0.5, "retain": 0.9, "test": 0.8}
RETRAINED = {"forget": 0.6, "retain": 1.0, "test": 0.6}


def test_gap():
    ours = {"ua": 0.10, "ra": 0.95, "ta": 0.90, "mia": 0.30}
    theirs = {"mia": 0.10, "ua": 0.06, "ra": 1.00, "ta": 0.92}
    assert gap(ours, theirs) == pytest.approx((0.04 + 0.05 + 0.02 + 0.20) / 4)
    assert gap(ours, ours) == 0


def test_tug_of_war():
    assert tug_of_war(UNLEARNED, RETRAINED) == pytest.approx(0.9 * 0.9 * 0.8)
    assert tug_of_war(RETRAINED, UNLEARNED) == pytest.approx(0.9 * 0.9 * 0.8)
    assert tug_of_war(UNLEARNED, UNLEARNED) == 1


def test_runtime_ratio():
    assert runtime_ratio(5, 20) == 0.25


def test_errors():
    with pytest.raises(
        ValueError, match=r"retrained: has the measures \['ra'\], expected the same as unlearned, \['ua'\]"
    ):
        gap({"ua": 0.1}, {"ra": 0.1})
    with pytest.raises(ValueError, match="at least one"):
        gap({}, {})
    with pytest.raises(ValueError, match=r"retrained\['ua'\] is nan, expected a finite number"):
        gap({"ua": 0.1}, {"ua": math.nan})
    with pytest.raises(ValueError, match=r"retrained: has accuracies for \['forget'\], expected"):
        tug_of_war(UNLEARNED, {"forget": 0.5})
    with pytest.raises(ValueError, match=r"unlearned\['test'\] is 80, expected an accuracy in \[0, 1\]"):
        tug_of_war(UNLEARNED | {"test": 80}, RETRAINED)
    with pytest.raises(ValueError, match="retraining_seconds is 0, expected a finite number > 0"):
        runtime_ratio(1, 0)
    with pytest.raises(ValueError, match="seconds is -1, expected a finite number >= 0"):
        runtime_ratio(-1, 1)
