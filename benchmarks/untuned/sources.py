"""Where the study finds data and trained models, and where it keeps those that it trains."""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from unlearnx._files import write_atomically
from unlearnx.data import FeatureTable, Splits, load_adult, load_cifar10, load_mnist
from unlearnx.experiments.runs import describe, train, untrained
from unlearnx.models import Training

CPU = torch.device("cpu")
STORE = Path(tempfile.gettempdir()) / "unlearnx-untuned"

T = TypeVar("T")


class Missing(Exception):
    """A cell cannot be built here; the message says what it needs."""


def at_hand(
    name: str, seeds: Iterable[int], build: Callable[[int], T], say: Callable[[str], None]
) -> Iterator[tuple[int, T]]:
    """Each seed with what is built for it, until something is not at hand, which is said."""
    for seed in seeds:
        try:
            built = build(seed)
        except Missing as missing:
            say(f"{name}: left out: {missing}")
            return
        yield seed, built


def _folder(variable: str) -> Path | None:
    found = os.environ.get(variable)
    return Path(found) if found else None


@dataclass(frozen=True)
class Sources:
    """Folders.

    Attributes:
        data: holds ``mnist-10k.npz`` and ``adult.*.gz``; UNLEARNX_DATA where not given.
        cifar: CIFAR-10, as for :func:`unlearnx.data.load_cifar10`; UNLEARNX_CIFAR where not given.
        models: holds the trained VGGs and ``resnet9``; UNLEARNX_MODELS where not given.
        store: where trained models are kept, each in a file whose name tells of its recipe and its data.
    """

    data: Path | None = field(default_factory=lambda: _folder("UNLEARNX_DATA"))
    cifar: Path | None = field(default_factory=lambda: _folder("UNLEARNX_CIFAR"))
    models: Path | None = field(default_factory=lambda: _folder("UNLEARNX_MODELS"))
    store: Path = STORE

    def mnist(self) -> Splits:
        """MNIST, half of it to train on."""
        return _mnist(self._given("data", "UNLEARNX_DATA"))

    def adult(self) -> FeatureTable:
        """UCI's census income."""
        return _adult(self._given("data", "UNLEARNX_DATA"))

    def text(self, name: str) -> Path:
        """A text in the folder of data."""
        return self._file("data", name)

    def cifar10(self) -> Splits:
        """All of CIFAR-10."""
        return _cifar10(self._given("cifar", "UNLEARNX_CIFAR"))

    def weights(self, network: Callable[[], nn.Module], name: str) -> nn.Module:
        """The network with the weights in a file of the folder of models, in eval mode."""
        model = untrained(network, seed=0, device=CPU)
        model.load_state_dict(torch.load(self.file(name), weights_only=True))
        return model.eval()

    def file(self, name: str) -> Path:
        """A file in the folder of models."""
        return self._file("models", name)

    def trained(
        self, network: Callable[[], nn.Module], training: Training, data: tuple[Tensor, Tensor], seed: int
    ) -> tuple[nn.Module, float]:
        """A model trained on the data, in eval mode, and the seconds that took: from the store where it is there."""
        model = untrained(network, seed=seed, device=CPU)
        key = zlib.crc32(f"{model}, {describe(training)}".encode())
        for t in (*data, *model.state_dict().values()):
            key = zlib.crc32(t.numpy().tobytes(), key)
        file = self.store / f"{key:08x}.pt"
        if not file.exists():
            model, seconds = train(network, training, data, seed=seed, device=CPU, progress=False)
            found = {"model": model.state_dict(), "seconds": seconds}
            write_atomically(file, lambda f: torch.save(found, f))
        found = torch.load(file, weights_only=True)
        model.load_state_dict(found["model"])
        return model.eval(), found["seconds"]

    def _file(self, folder: str, name: str) -> Path:
        file = self._given(folder, f"UNLEARNX_{folder.upper()}") / name
        if not file.is_file():
            raise Missing(f"needs {file}")
        return file

    def _given(self, name: str, variable: str) -> Path:
        folder = getattr(self, name)
        if folder is None:
            raise Missing(f"needs {variable}, which names the folder of {name}")
        return folder


@lru_cache(maxsize=1)
def _mnist(folder: Path) -> Splits:
    return load_mnist(folder, test_share=0.5)


@lru_cache(maxsize=1)
def _adult(folder: Path) -> FeatureTable:
    return load_adult(folder)


@lru_cache(maxsize=1)
def _cifar10(folder: Path) -> Splits:
    return load_cifar10(folder)
