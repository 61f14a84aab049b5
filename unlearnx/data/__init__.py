"""Data of the experiments: digits, MNIST, CIFAR-10 and CIFAR-100, augmented images, poisoned and noisy labels,
texts with canaries, tables with features to forget; texts of JSON lines, for language models."""

from unlearnx.data.augmentation import augmented
from unlearnx.data.cifar10 import load_cifar10
from unlearnx.data.cifar100 import CIFAR100, cifar20, load_cifar100
from unlearnx.data.digits import load_digits
from unlearnx.data.features import FEATURE_TABLES, FeatureTable, load_adult, load_diabetes, load_drebin, load_enron
from unlearnx.data.mnist import load_mnist
from unlearnx.data.noise import noisy_inputs, noisy_labels
from unlearnx.data.poison import Poison, flip_labels
from unlearnx.data.splits import Splits
from unlearnx.data.text import Alphabet, Canary, Planted, load_text, windows
from unlearnx.data.texts import Text, read_texts, tokenize

__all__ = [
    "CIFAR100",
    "FEATURE_TABLES",
    "Alphabet",
    "Canary",
    "FeatureTable",
    "Planted",
    "Poison",
    "Splits",
    "Text",
    "augmented",
    "cifar20",
    "flip_labels",
    "load_adult",
    "load_cifar10",
    "load_cifar100",
    "load_diabetes",
    "load_digits",
    "load_drebin",
    "load_enron",
    "load_mnist",
    "load_text",
    "noisy_inputs",
    "noisy_labels",
    "read_texts",
    "tokenize",
    "windows",
]
