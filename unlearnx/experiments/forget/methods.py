"""The methods that are compared, with their arguments for each kind of data."""

from __future__ import annotations

import math
from dataclasses import replace

from unlearnx.curvature import ConjugateGradient
from unlearnx.experiments.runs import default_device
from unlearnx.methods import (
    KFADE,
    SCRUB,
    SSD,
    BadTeacher,
    FineTune,
    FirstOrder,
    FisherMasking,
    GradientAscent,
    Method,
    NegGrad,
    Pipeline,
    RandomPerturbation,
    SalUn,
    SecondOrder,
    StochasticTeacher,
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
