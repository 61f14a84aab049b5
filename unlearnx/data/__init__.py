"""Data of the experiments: embedded digits, CIFAR-10 as its users have it, label poisoning, texts and canaries, tables
with features to forget."""

from unlearnx.data.cifar10 import load_cifar10
from unlearnx.data.digits import load_digits
from unlearnx.data.features import FEATURE_TABLES, FeatureTable, load_adult, load_diabetes, load_drebin, load_enron
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
    "load_text",
    "windows",
]
