"""The studies, end to end: prepare data, train, unlearn with each method, retrain, report. And `unlearn`, for a user's
own model."""

from unlearnx.experiments.canary import CanaryStudy, canary_alice
from unlearnx.experiments.canary_lm import CanaryLMStudy, canary_lm
from unlearnx.experiments.features import FeatureStudy, features
from unlearnx.experiments.forget import (
    ForgetStudy,
    forget_class_cifar,
    forget_class_digits,
    forget_class_of,
    forget_random_cifar,
    forget_random_digits,
    forget_random_of,
    forget_subclass_of,
)
from unlearnx.experiments.poison import Checkpoints, PoisonStudy, poison_cifar, poison_digits
from unlearnx.experiments.repair import RepairStudy, repair_mnist
from unlearnx.experiments.tofu import TofuStudy, tofu
from unlearnx.experiments.unlearn import unlearn
from unlearnx.experiments.unlearn_texts import unlearn_texts

__all__ = [
    "CanaryLMStudy",
    "CanaryStudy",
    "Checkpoints",
    "FeatureStudy",
    "ForgetStudy",
    "PoisonStudy",
    "RepairStudy",
    "TofuStudy",
    "canary_alice",
    "canary_lm",
    "features",
    "forget_class_cifar",
    "forget_class_digits",
    "forget_class_of",
    "forget_random_cifar",
    "forget_random_digits",
    "forget_random_of",
    "forget_subclass_of",
    "poison_cifar",
    "poison_digits",
    "repair_mnist",
    "tofu",
    "unlearn",
    "unlearn_texts",
]
