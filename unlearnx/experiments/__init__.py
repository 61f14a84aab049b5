"""The studies, end to end: train, poison or plant, unlearn with every method, retrain, report; and `unlearn`, for
models of the user's own."""

from unlearnx.experiments.canary import CanaryStudy, canary_alice
from unlearnx.experiments.poison import Checkpoints, PoisonStudy, poison_cifar, poison_digits
from unlearnx.experiments.unlearn import unlearn

__all__ = ["CanaryStudy", "Checkpoints", "PoisonStudy", "canary_alice", "poison_cifar", "poison_digits", "unlearn"]
