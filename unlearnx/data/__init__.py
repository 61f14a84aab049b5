"""Data of the experiments: digits, MNIST, CIFAR-10, poisoned and noisy labels, texts with canaries, and tables with
features to forget."""

from unlearnx.data.cifar10 import load_cifar10
from unlearnx.data.digits import load_digits
from unlearnx.data.features import FEATURE_TABLES, FeatureTable, load_adult, load_diabetes, load_drebin, load_enron
from unlearnx.data.mnist import load_mnist
from unlearnx.data.noise import noisy_inputs, noisy_labels
from unlearnx.data.poison import Poison, flip_labels
from unlearnx.data.splits import Splits
from unlearnx.data.text import Alphabet, Canary, Planted, load_text, windows

__all__ = [
    "FEATURE_TABLES",
    "Alphabet",
    "Canary",
    "FeatureTable",
    "Planted",
    "Poison",
    "Splits",
    "flip_labels",
    "load_adult",
    "load_cifar10",
    "load_diabetes",
    "load_digits",
    "load_drebin",
    "load_enron",
    "load_mnist",
    "load_text",
    "noisy_inputs",
    "noisy_labels",
    "windows",
]
