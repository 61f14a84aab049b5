"""The studies, end to end: train, poison, plant or drop, unlearn with every method, retrain, report; and `unlearn`, for
models of the user's own."""

from unlearnx.experiments.canary import CanaryStudy, canary_alice
from unlearnx.experiments.features import FeatureStudy, features
from unlearnx.experiments.forget import (
    ForgetStudy,
    forget_class_cifar,
    forget_class_digits,
    forget_random_cifar,
    forget_random_digits,
)
from unlearnx.experiments.poison import Checkpoints, PoisonStudy, poison_cifar, poison_digits
from unlearnx.experiments.unlearn import unlearn

__all__ = [
    "CanaryStudy",
    "Checkpoints",
    "FeatureStudy",
    "ForgetStudy",
    "PoisonStudy",
    "canary_alice",
    "features",
    "forget_class_cifar",
    "forget_class_digits",
    "forget_random_cifar",
    "forget_random_digits",
    "poison_cifar",
    "poison_digits",
    "unlearn",
]
