"""Forgetting a class or a random share of the training images: which method comes closest to retraining?"""

from unlearnx.experiments.forget.cifar import forget_class_of, forget_random_of, forget_subclass_of
from unlearnx.experiments.forget.repetition import repeat
from unlearnx.experiments.forget.studies import (
    forget_class_cifar,
    forget_class_digits,
    forget_random_cifar,
    forget_random_digits,
)
from unlearnx.experiments.forget.study import ForgetStudy
from unlearnx.experiments.forget.sweeps import Sweep
from unlearnx.experiments.forget.tuning import tune

__all__ = [
    "ForgetStudy",
    "Sweep",
    "forget_class_cifar",
    "forget_class_digits",
    "forget_class_of",
    "forget_random_cifar",
    "forget_random_digits",
    "forget_random_of",
    "forget_subclass_of",
    "repeat",
    "tune",
]
