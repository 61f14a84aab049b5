"""The cells of the study: a model, what it is to forget, and the model trained without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Subset

from benchmarks.untuned.networks import PatchTransformer, RowLSTM, narrow_resnet, one_logit_mlp
from benchmarks.untuned.sources import Missing, Sources
from unlearnx import Request
from unlearnx._data import Data
from unlearnx._losses import Loss
from unlearnx.data import Poison, augmented, load_digits
from unlearnx.metrics import accuracy
from unlearnx.models import Training, digits_cnn, resnet9, vgg_cifar10

Pair = tuple[Tensor, Tensor]
Network = Callable[[], nn.Module]

FORGOTTEN_CLASS = 3
READ = 2000  # samples of a large set that tell an accuracy
VGG_SECONDS = 1580.0  # of training one, as measured by who trained them
RESNET9_SECONDS = {"class-0": 1477.0, "random-0": 1007.0, "random-1": 1226.0}


@dataclass(frozen=True)
class Case:
    """A cell with one seed.

    Attributes:
        model: trained on all of ``request.dataset``, in eval mode.
        request: what it is to forget.
        held: samples of the kind that stays, which it never saw.
        test: others of these, for the accuracy on what stays.
        loss_fn: that it was trained with.
        retrained: the model trained on what stays, from another initialisation; None where there is none.
        seconds: of training that.
        stand_in: of a `retrained` that saw the forget set with other labels, samples that it never saw with labels that
            are as wrong as those to forget: they are read in place of the forget set.
    """

    model: nn.Module
    request: Request
    held: Pair
    test: Pair
    loss_fn: Loss
    retrained: nn.Module | None
    seconds: float
    stand_in: Pair | None = None

    @cached_property
    def accuracy(self) -> dict[str, float]:
        """Of the model, on the forget set and on the test set."""
        return self.measure(self.model)

    @cached_property
    def retrained_accuracy(self) -> dict[str, float | None]:
        """Of the retrained model, on the same; without one, a class is never given and the rest unknown."""
        if self.retrained is None:
            return {"forget": 0.0, "test": None}
        return {"forget": accuracy(self.retrained, self.unseen), "test": accuracy(self.retrained, self.test)}

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Accuracy of a model on the forget set, of which at most 2,000 samples are read, and on the test set."""
        return {"forget": accuracy(model, self.read), "test": accuracy(model, self.test)}

    @cached_property
    def read(self) -> Data:
        """The forget set, or 2,000 samples of a larger one."""
        forget = self.request.forget_set
        return Subset(forget, drawn(len(forget), READ, 0).tolist())

    @property
    def unseen(self) -> Data:
        """What the retrained model never saw: the forget set, or what stands in for it."""
        return self.read if self.stand_in is None else self.stand_in


@dataclass(frozen=True)
class Cell:
    """What is forgotten by what.

    Attributes:
        name: of the cell.
        what: it is, in words.
        memorised: least accuracy on the forget set before.
        unseen: most accuracy of the retrained model on it.
        seeds: that it exists for.
        make: makes the case of a seed.
        is_class: whether a whole class is forgotten.
        is_large: whether training it takes longer than forgetting should.
    """

    name: str
    what: str
    memorised: float
    unseen: float
    seeds: tuple[int, ...]
    make: Callable[[Sources, int], Case]
    is_class: bool = False
    is_large: bool = False

    def build(self, seed: int = 0, sources: Sources | None = None) -> Case:
        """The case of a seed; models come from the store, or are trained and kept there.

        Raises:
            Missing: data or models are not at hand.
        """
        if seed not in self.seeds:
            raise Missing(f"{self.name} has no models of seed {seed}")
        return self.make(Sources() if sources is None else sources, seed)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, with what is to be forgotten and without."""

    network: Network
    training: Training

    def case(self, sources: Sources, data: Pair, forget: Tensor, held: Pair, test: Pair, seed: int) -> Case:
        """Trains on all of the data, and on what stays of it; of a class, held-out data has what stays only."""
        x, y = data
        request = Request.remove(data, forget)
        model, _ = sources.trained(self.network, self.training, data, seed)
        stays = request.retain
        retrained, seconds = sources.trained(self.network, self.training, (x[stays], y[stays]), seed + 1000)
        return Case(model, request, held, test, self.training.loss_fn, retrained, seconds)


def _of_class(y: Tensor, c: int) -> Tensor:
    return (y == c).nonzero().flatten()


def _without(data: Pair, c: int) -> Pair:
    x, y = data
    return x[y != c], y[y != c]


def _halves(data: Pair) -> tuple[Pair, Pair]:
    x, y = data
    return (x[::2], y[::2]), (x[1::2], y[1::2])


def drawn(n: int, k: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:k].sort().values


def digits(seed: int) -> tuple[Pair, Pair, Pair]:
    splits = load_digits(test_share=0.5, seed=seed)
    return (splits.train_x, splits.train_y), *_halves((splits.test_x, splits.test_y))


def _mnist(sources: Sources, seed: int) -> tuple[Pair, Pair, Pair]:
    splits = sources.mnist()
    chosen = drawn(len(splits.train_y), 1500, seed)
    return (splits.train_x[chosen], splits.train_y[chosen]), *_halves((splits.test_x, splits.test_y))


def _forget_class(recipe: Recipe, sets: tuple[Pair, Pair, Pair], sources: Sources, seed: int) -> Case:
    data, held, test = sets
    kept = _without(held, FORGOTTEN_CLASS), _without(test, FORGOTTEN_CLASS)
    return recipe.case(sources, data, _of_class(data[1], FORGOTTEN_CLASS), *kept, seed)


def _forget_tenth(recipe: Recipe, sets: tuple[Pair, Pair, Pair], sources: Sources, seed: int) -> Case:
    data, held, test = sets
    n = len(data[1])
    return recipe.case(sources, data, drawn(n, n // 10, seed + 10), held, test, seed)


LSTM = Recipe(lambda: RowLSTM(8), Training(30, lr=1e-2, batch_size=64))
MEMORISING_LSTM = Recipe(lambda: RowLSTM(8), Training(90, lr=1e-2, batch_size=64, weight_decay=0.0))
TRANSFORMER = Recipe(lambda: PatchTransformer((8, 8), (2, 4)), Training(30, lr=5e-3, batch_size=64))
RESNET = Recipe(narrow_resnet, Training(8, lr=1e-2, batch_size=64))
CNN = Recipe(digits_cnn, Training(15, lr=5e-3, batch_size=64))
MEMORISING_CNN = Recipe(digits_cnn, Training(40, lr=5e-3, batch_size=64))


def _lstm_class(sources: Sources, seed: int) -> Case:
    return _forget_class(LSTM, digits(seed), sources, seed)


def _transformer_class(sources: Sources, seed: int) -> Case:
    return _forget_class(TRANSFORMER, digits(seed), sources, seed)


def _cnn_class(sources: Sources, seed: int) -> Case:
    return _forget_class(CNN, digits(seed), sources, seed)


def _cnn_random(sources: Sources, seed: int) -> Case:
    return _forget_tenth(CNN, digits(seed), sources, seed)


def _resnet_class(sources: Sources, seed: int) -> Case:
    return _forget_class(RESNET, _mnist(sources, seed), sources, seed)


def _resnet_random(sources: Sources, seed: int) -> Case:
    return _forget_tenth(RESNET, _mnist(sources, seed), sources, seed)


def _lstm_user(sources: Sources, seed: int) -> Case:
    """Labels drawn at random, of which one in ten is right."""
    (x, y), held, test = digits(seed)
    forget, y = drawn(len(y), 100, seed + 10), y.clone()
    y[forget] = torch.randint(10, (100,), generator=torch.Generator().manual_seed(seed))
    return MEMORISING_LSTM.case(sources, (x, y), forget, held, test, seed)


def _cnn_mislabelled(sources: Sources, seed: int) -> Case:
    (x, y), held, test = digits(seed)
    forget, y = drawn(len(y), len(y) // 10, seed + 10), y.clone()
    y[forget] = (y[forget] + torch.randint(1, 10, (len(forget),), generator=torch.Generator().manual_seed(seed))) % 10
    return MEMORISING_CNN.case(sources, (x, y), forget, held, test, seed)


def _mlp_user(sources: Sources, seed: int) -> Case:
    """Thirty users of a hundred rows each; the last one's labels are turned round."""
    table = sources.adult()
    train_x, test_x = (torch.from_numpy(x).float() for x in (table.train_x, table.test_x))
    train_y, test_y = (torch.from_numpy(y).float() for y in (table.train_y, table.test_y))
    mean, deviation = train_x.mean(0), train_x.std(0) + 1e-3
    train_x, test_x = (train_x - mean) / deviation, (test_x - mean) / deviation
    chosen = drawn(len(train_y), 3000, seed)
    x, y, forget = train_x[chosen], train_y[chosen], torch.arange(2900, 3000)
    y[forget] = 1 - y[forget]
    training = Training(80, lr=5e-3, loss_fn=F.binary_cross_entropy_with_logits)
    recipe = Recipe(lambda: one_logit_mlp(x.shape[1]), training)
    return recipe.case(sources, (x, y), forget, *_halves((test_x[:8000], test_y[:8000])), seed)


def _cifar10(sources: Sources) -> tuple[Pair, Pair, Pair]:
    splits = sources.cifar10()
    return (splits.train_x, splits.train_y), *_halves((splits.test_x[: 2 * READ], splits.test_y[: 2 * READ]))


def _vgg_poisoned(sources: Sources, seed: int) -> Case:
    """The clean model stands in for a retrained one, on test images whose labels are flipped as those to forget."""
    clean, model = (sources.weights(vgg_cifar10, f"cifar10-vgg-{name}.pt") for name in ("clean", "poisoned"))
    poison = Poison.load(sources.file("cifar10-poison.npz"))
    (x, y), held, test = _cifar10(sources)
    request = Request.remove((x, poison.apply(y)), poison.indices)
    flipped = test[0], 9 - test[1]
    return Case(model, request, held, test, F.cross_entropy, clean, VGG_SECONDS, flipped)


def _vgg_class(sources: Sources, seed: int) -> Case:
    model = sources.weights(vgg_cifar10, "cifar10-vgg-clean.pt")
    data, held, test = _cifar10(sources)
    held, test = (_without(part, FORGOTTEN_CLASS) for part in (held, test))
    request = Request.remove_class(data, FORGOTTEN_CLASS)
    return Case(model, request, held, test, F.cross_entropy, None, VGG_SECONDS)


def _resnet9_class(sources: Sources, seed: int) -> Case:
    automobiles = 1
    model, retrained = (sources.weights(resnet9, f"resnet9/{name}-{seed}.pt") for name in ("original", "class"))
    data, held, test = _cifar10(sources)
    held, test = (_without(part, automobiles) for part in (held, test))
    request = Request.remove_class(data, automobiles)
    return Case(model, request, held, test, F.cross_entropy, retrained, RESNET9_SECONDS[f"class-{seed}"])


def _resnet9_random(sources: Sources, seed: int) -> Case:
    model, retrained = (sources.weights(resnet9, f"resnet9/{name}-{seed}.pt") for name in ("original", "random"))
    data, held, test = _cifar10(sources)
    request = Request.remove(augmented(data), drawn(len(data[1]), len(data[1]) // 10, seed), measure=data)
    return Case(model, request, held, test, F.cross_entropy, retrained, RESNET9_SECONDS[f"random-{seed}"])


_THREE = (0, 1, 2)
_CELLS = (
    Cell("lstm-class", "LSTM over rows of digits, a class", 0.97, 0.0, _THREE, _lstm_class, is_class=True),
    Cell(
        *("transformer-class", "transformer over patches of digits, a class", 0.97, 0.0),
        *(_THREE, _transformer_class),
        is_class=True,
    ),
    Cell("lstm-user", "LSTM over rows of digits, 100 random labels of one user", 0.9, 0.2, _THREE, _lstm_user),
    Cell("mlp-user", "MLP with one logit on census data, 100 wrong labels of one user", 0.8, 0.3, _THREE, _mlp_user),
    Cell("resnet-class", "narrow ResNet on MNIST, a class", 0.97, 0.0, _THREE, _resnet_class, is_class=True),
    Cell("resnet-random", "narrow ResNet on MNIST, a random tenth", 0.98, 0.985, _THREE, _resnet_random),
    Cell("cnn-class", "CNN on digits, a class", 0.97, 0.0, _THREE, _cnn_class, is_class=True),
    Cell("cnn-random", "CNN on digits, a random tenth", 0.98, 1.0, _THREE, _cnn_random),
    Cell("cnn-mislabelled", "CNN on digits, a mislabelled tenth", 0.9, 0.1, _THREE, _cnn_mislabelled),
    Cell("vgg-poisoned", "VGG on CIFAR-10, 10,000 flipped labels", 0.9, 0.1, (0,), _vgg_poisoned, is_large=True),
    Cell("vgg-class", "VGG on CIFAR-10, cats", 0.9, 0.0, (0,), _vgg_class, is_class=True, is_large=True),
    Cell("resnet9-class", "ResNet-9 on CIFAR-10, automobiles", 0.9, 0.0, (0,), _resnet9_class, True, True),
    Cell("resnet9-random", "ResNet-9 on CIFAR-10, a random tenth", 0.9, 0.9, (0, 1), _resnet9_random, is_large=True),
)
CELLS = {cell.name: cell for cell in _CELLS}
"""By their names."""
