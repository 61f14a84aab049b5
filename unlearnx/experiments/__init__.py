"""The studies, end to end: train, poison, unlearn with every method, retrain, report."""

from unlearnx.experiments.poison import Checkpoints, PoisonStudy, poison_cifar, poison_digits

__all__ = ["Checkpoints", "PoisonStudy", "poison_cifar", "poison_digits"]
