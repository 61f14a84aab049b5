"""The methods that are compared, with their arguments for each kind of data."""

from __future__ import annotations

import math
from dataclasses import replace

from unlearnx.curvature import ConjugateGradient
from unlearnx.experiments.runs import default_device
from unlearnx.methods import (
    CT,
    KFADE,
    MSG,
    RUM,
    SCRUB,
    SSD,
    UNSIR,
    BadTeacher,
    BoundaryShrink,
    FineTune,
    FirstOrder,
    FisherMasking,
    GradientAscent,
    JiT,
    L1Sparse,
    Method,
    NegGrad,
    Pipeline,
    RandomLabels,
    RandomPerturbation,
    SalUn,
    SecondOrder,
    StochasticTeacher,
    WoodFisher,
)
from unlearnx.models import fast_dtype

Methods = dict[str, Method | Pipeline]


def digits_methods(forget_class: int | None) -> Methods:
    """The methods with their arguments for a class, or for a random share (None); chosen with the seeds 0 and 1."""
    masking = FisherMasking(0.005) if forget_class is not None else FisherMasking(0.005, max_increase=math.inf)
    gradient, newton = FirstOrder(params="last:2"), SecondOrder(ConjugateGradient(), damping=1e-2, params="last:2")
    if forget_class is None:  # no weights of the last layer represent a random share of the images
        gradient = FirstOrder(tau=3e-3, steps=20)
        newton = replace(
            newton, solver=ConjugateGradient(iterations=10), params=None, step=10.0, steps=1, curvature_samples=500
        )
    return {
        "ssd": SSD(alpha="adaptive"),
        "fisher-masking": masking if forget_class is not None else Pipeline([masking, FineTune(epochs=2)]),
        "fine-tune": FineTune(epochs=5, lr=2e-3),
        "first-order": gradient,
        "second-order": newton,
        "gradient-ascent": GradientAscent(epochs=5) if forget_class is not None else GradientAscent(epochs=2),
        "k-fade": KFADE(),
        "neg-grad": NegGrad(epochs=2, weight=0.99 if forget_class is not None else 0.9),
        "random-perturbation": Pipeline([RandomPerturbation(0.5), FineTune(epochs=4, lr=2e-3)]),
        "stochastic-teacher": StochasticTeacher(epochs=2),
        "bad-teacher": BadTeacher(epochs=2),
        "scrub": SCRUB(epochs=4),
        "salun": SalUn(epochs=3),
    }


def cifar_methods(forget_class: int | None) -> Methods:
    """The methods with their arguments for a class, or for a random share (None)."""
    fast = fast_dtype(default_device())
    masking = FisherMasking(0.005, max_increase=math.inf, autocast=fast)
    return {
        "ssd": SSD(alpha="adaptive", autocast=fast),
        "fisher-masking": Pipeline([masking, FineTune(epochs=1, autocast=fast)]),
        "fine-tune": FineTune(epochs=2, lr=2e-3, batch_size=128, autocast=fast),
        "fine-tune-anchored": FineTune(epochs=2, lr=2e-3, anchor=1e-2, batch_size=128, autocast=fast),
        "first-order": FirstOrder(params="last:2"),
        "second-order": SecondOrder(ConjugateGradient(), damping=1e-2, params="last:2", step=1.0, steps=1),
        "gradient-ascent": GradientAscent(epochs=1, lr=1e-4, autocast=fast),
        "k-fade": KFADE(),
        "neg-grad": NegGrad(epochs=1, batch_size=128, autocast=fast),
        "random-perturbation": Pipeline(
            [RandomPerturbation(0.2), FineTune(epochs=1, lr=2e-3, batch_size=128, autocast=fast)]
        ),
        "stochastic-teacher": StochasticTeacher(erase_epochs=1, epochs=1, batch_size=128, autocast=fast),
        "bad-teacher": BadTeacher(epochs=1, batch_size=128, autocast=fast),
        "scrub": SCRUB(epochs=2, max_epochs=1, batch_size=128, autocast=fast),
        "salun": SalUn(epochs=1, batch_size=128, autocast=fast),
    }


def resnet_methods(forget_class: int | None, passes: int) -> Methods:
    """The methods of the field's tables, for a class, or for a random share (None).

    Args:
        forget_class: its number.
        passes: over what stays, of those that train on it; with one, each evaluates at most a tenth as many gradients
            as retraining for 14 epochs.
    """
    is_class = forget_class is not None
    healing, relabelling = FineTune(epochs=passes, lr=2e-3), SalUn(epochs=passes, lr=5e-4)
    return {
        "fine-tune": healing,
        "l1-sparse": L1Sparse(epochs=passes, lr=2e-3),
        "salun": relabelling,
        "random-labels": RandomLabels(epochs=passes, lr=5e-4),
        "gradient-ascent": GradientAscent(epochs=1, lr=4e-5 if is_class else 1e-5),
        "boundary-shrink": BoundaryShrink(epochs=2, lr=2e-5 if is_class else 1e-5),
        "neg-grad": NegGrad(epochs=passes, lr=5e-4, weight=0.99),
        "scrub": SCRUB(epochs=passes, max_epochs=1, lr=1e-3, max_lr=5e-5),
        "bad-teacher": BadTeacher(epochs=passes, lr=5e-4),
        "k-fade": KFADE(step=1.0),
        "influence": WoodFisher(),
        "ssd": SSD(),
        "lfssd": SSD(fisher_type="label_free"),
        "unsir": UNSIR(epochs=passes, retained=15_000),
        "jit": JiT(epochs=1),
        "msg": MSG(epochs=passes, lr=2e-3),
        "ct": CT(epochs=passes, lr=2e-3),
        "rum": RUM([relabelling] if passes == 1 else [healing, relabelling]),  # two stages make twice as many
    }
