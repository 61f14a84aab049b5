"""Reference models of a study that were trained before and lie in files, and what training them would take."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unlearnx.experiments.runs import untrained
from unlearnx.experiments.weights import Weights, state_tensors
from unlearnx.models import Training

TIMED_STEPS, WARM_STEPS = 12, 3


@dataclass(frozen=True)
class TrainedModels:
    """A folder with models that the recipe of a study has trained.

    Those of seed S are ``original-S.pt``, trained on all images, and ``KIND-S.pt``, trained without what is to be
    forgotten.

    Attributes:
        folder: holds the files, or has a folder of the network's name that does.
        network: that name.
        kind: of what is to be forgotten; None where the folder has no retrained models of it.
    """

    folder: Path
    network: str
    kind: str | None

    def file(self, name: str, seed: int) -> Path | None:
        """The file of the original or the retrained model of a seed; None where there is none."""
        stem = "original" if name == "original" else self.kind
        if stem is None:
            return None
        files = (folder / f"{stem}-{seed}.pt" for folder in (self.folder, self.folder / self.network))
        return next((file for file in files if file.is_file()), None)


def load(file: Path, network: Callable[[], nn.Module], device: torch.device) -> nn.Module:
    """The network with the weights in a file, in eval mode. They may be of another precision than the network's.

    Raises:
        ValueError: the file is damaged or of another network.
    """
    model, weights = untrained(network, seed=0, device=device), Weights.read(file)
    own = state_tensors(model)
    cast = {name: t.to(own[name].dtype) if name in own else t for name, t in weights.tensors.items()}
    replace(weights, tensors=cast).load_into(model)
    return model.eval()


def check_never_saw(file: Path, measures: Mapping[str, float], images: int) -> None:
    """Refuse a retrained model that knows the forget set as well as what it was trained on.

    Args:
        file: of the model.
        measures: its accuracies.
        images: in the forget set.

    Raises:
        ValueError: its accuracy there is not below that on the retain set, by more than chance explains.
    """
    forget, retain = measures["forget_accuracy"], measures["retain_accuracy"]
    if forget > retain - 3 * math.sqrt(retain * (1 - retain) / images):
        raise ValueError(
            f"models: {file} is right on {forget:.1%} of the forget set and on {retain:.1%} of what stays, expected a "
            "model that never saw the forget set; are the images in the order in which it was trained on them?"
        )


def estimated_seconds(
    training: Training, network: Callable[[], nn.Module], data: tuple[Tensor, Tensor], device: torch.device
) -> float:
    """Seconds that a training would take here and now, from some of its steps."""
    x, y = data
    model = untrained(network, seed=0, device=device).train()
    seconds = 0.0
    for steps in (WARM_STEPS, TIMED_STEPS):
        part = slice(0, steps * training.batch_size)
        seconds = replace(training, epochs=1, progress=False).run(model, (x[part], y[part]))
    timed = min(len(x), TIMED_STEPS * training.batch_size)
    return seconds * training.epochs * len(x) / timed


def described(file: Path) -> dict[str, Any]:
    """What a trial says of a model that was read from a file."""
    return {"read_from": file.name, "seconds_are_estimated": True}
