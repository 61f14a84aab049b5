"""Membership inference: does the model treat the forget set as training data?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unlearnx._arguments import checked
from unlearnx._checks import check_seed, known_as
from unlearnx._data import Data
from unlearnx._extras import extra
from unlearnx.metrics.outputs import answers, each_batch

CROSS_VALIDATION_SPLITS = 10
MIN_CROSS_VALIDATION_SAMPLES = 10  # in each set
MAX_UNROUNDED_SAMPLES = 4000  # of more, confidences are rounded and equal ones merged: an SVM's time is quadratic
ROUNDED_DECIMALS = 4  # of these confidences; the SVM's kernel is far too smooth for the others to matter

Feature = Callable[[Tensor, Tensor], Tensor]  # log-probabilities (N, P, classes), labels (N, P) -> (N, P)


@checked
def mia(
    model: nn.Module,
    *,
    forget: Data,
    retain: Data,
    test: Data,
    protocol: str = "salun",
    seed: int = 0,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
) -> float:
    """A membership inference attack on the forget set, in [0, 1]. Three different measures go by this name.

    - ``"salun"``: share of the forget set that is called a NON-member by an SVM (RBF kernel, C = 3, gamma = 1) on the
      softmax probability of the label, fitted to tell `retain` from `test`; the larger of these two is subsampled to
      the size of the other. With more than 4,000 samples in total, probabilities are rounded to four decimals to keep
      the fit fast. Ideal: the value of a retrained model, which is high.
    - ``"ssd"``: share of the forget set that is called a MEMBER by a logistic regression with balanced classes on the
      entropy of the prediction, fitted to tell `retain` from `test`. Ideal: the value of a
      retrained model, which is low.
    - ``"starter_kit"``: accuracy of a logistic regression on the cross-entropy in telling `forget` from `test`, mean of
      ten stratified random splits with 10 % held out; the larger set is subsampled to the size of the other. Ideal:
      0.5, no better than guessing.

    Args:
        model: maps x to class scores (N, classes), or to scores of each position; or to logits of yes with labels of 0
            and 1, which are taken as two classes. The value of a sample with several labels is the mean over those
            that count; samples without such a label are left out. Regression has no attack.
        forget: samples (x, y) that the model should have forgotten.
        retain: pairs that it was trained on and should still know; ``"starter_kit"`` does not read them.
        test: pairs that it was never trained on. Where the forget set is a class, use test samples of that class for
            ``"starter_kit"``: otherwise the attack only tells the classes apart.
        protocol: which attack.
        seed: of subsampling and splits.
        batch_size: samples in one forward pass.
        autocast: dtype for the layers that mixed precision speeds up; None keeps the model's own dtype.

    Raises:
        ImportError: scikit-learn is missing; it comes with ``unlearnx[experiments]``.
        ValueError: the protocol is unknown, the seed is not from 0 to 2**32 - 1, output or labels have the wrong shape,
            scores are not finite, or there are fewer than ten samples to cross-validate on.

    Source: public code of Fan et al., "SalUn", ICLR 2024 (``SVC_MIA``, "confidence"); of Foster et al., "Fast Machine
    Unlearning Without Retraining Through Selective Synaptic Dampening", AAAI 2024 (``get_membership_attack_prob``);
    starting kit of the NeurIPS 2023 unlearning competition (``simple_mia``).

    Example:
        >>> forget, retain, test = ((torch.randn(n, 8), torch.arange(n) % 3) for n in (20, 60, 60))
        >>> share = mia(nn.Linear(8, 3), forget=forget, retain=retain, test=test, protocol="ssd")
        >>> 0 <= share <= 1
        True
    """
    if protocol not in _PROTOCOLS:
        raise ValueError(f"protocol is {protocol!r}, expected one of {', '.join(map(repr, _PROTOCOLS))}")
    check_seed(seed)
    feature, attack = _PROTOCOLS[protocol]

    def read(name: str, data: Data) -> np.ndarray:
        def measure(output: Any, y: Any) -> Tensor:
            log_p, labels, counts = answers(output, y)
            found, n = feature(log_p, labels).where(counts, 0).sum(1), counts.sum(1)
            return (found / n)[n > 0].cpu()

        with known_as(data=name):
            values = torch.cat(each_batch((model,), data, batch_size, autocast, measure, aligned=True))
        if not len(values):
            raise ValueError(f"{name}: has no label that counts, expected some")
        if not values.isfinite().all():
            raise ValueError(f"{name}: some labels have probability 0 and an infinite loss, expected finite losses")
        return values.numpy()[:, None]

    return attack(read, forget, retain, test, seed)


def _confidence(log_p: Tensor, y: Tensor) -> Tensor:
    return _of_labels(log_p, y).exp()


def _entropy(log_p: Tensor, y: Tensor) -> Tensor:
    p = log_p.exp()
    return -torch.where(p > 0, p * log_p, 0).sum(-1)


def _loss(log_p: Tensor, y: Tensor) -> Tensor:
    return -_of_labels(log_p, y)


def _of_labels(log_p: Tensor, y: Tensor) -> Tensor:
    return log_p.gather(-1, y[..., None]).squeeze(-1)


Read = Callable[[str, Data], np.ndarray]  # name and data of a set -> the feature of each of its samples, (N, 1)


def _salun(read: Read, forget: Data, retain: Data, test: Data, seed: int) -> float:
    with extra("mia", "scikit-learn"):
        from sklearn.svm import SVC
    members, others = _equally_many(read("retain", retain), read("test", test), seed)
    x, y = _labelled(members, others)
    weight: np.ndarray = np.ones(len(x))
    if len(x) > MAX_UNROUNDED_SAMPLES:  # equal samples are merged into one, with their number as its weight
        rows, weight = np.unique(np.column_stack([x.round(ROUNDED_DECIMALS), y]), axis=0, return_counts=True)
        x, y = rows[:, :1], rows[:, 1]
    svm = SVC(C=3, gamma="auto", kernel="rbf", random_state=seed).fit(x, y, sample_weight=weight)
    return 1 - float(svm.predict(read("forget", forget)).mean())


def _ssd(read: Read, forget: Data, retain: Data, test: Data, seed: int) -> float:
    with extra("mia", "scikit-learn"):
        from sklearn.linear_model import LogisticRegression
    regression = LogisticRegression(class_weight="balanced", solver="lbfgs")
    regression.fit(*_labelled(read("retain", retain), read("test", test)))
    return float(regression.predict(read("forget", forget)).mean())


def _starter_kit(read: Read, forget: Data, retain: Data, test: Data, seed: int) -> float:
    with extra("mia", "scikit-learn"):
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score
    forgotten, unseen = _equally_many(read("forget", forget), read("test", test), seed)
    if len(forgotten) < MIN_CROSS_VALIDATION_SAMPLES:
        raise ValueError(
            f"forget, test: the smaller has {len(forgotten)} samples, expected at least {MIN_CROSS_VALIDATION_SAMPLES}"
        )
    splits = StratifiedShuffleSplit(n_splits=CROSS_VALIDATION_SPLITS, random_state=seed)
    x, y = _labelled(forgotten, unseen)
    return float(cross_val_score(LogisticRegression(), x, y, cv=splits, scoring="accuracy").mean())


_PROTOCOLS: dict[str, tuple[Feature, Callable[..., float]]] = {
    "salun": (_confidence, _salun),
    "ssd": (_entropy, _ssd),
    "starter_kit": (_loss, _starter_kit),
}


def _equally_many(a: np.ndarray, b: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays, the larger one subsampled to the size of the other."""
    rng, n = np.random.default_rng(seed), min(len(a), len(b))
    a, b = (rows if len(rows) == n else rows[rng.choice(len(rows), n, replace=False)] for rows in (a, b))
    return a, b


def _labelled(ones: np.ndarray, zeros: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([ones, zeros]), np.repeat([1, 0], [len(ones), len(zeros)])
