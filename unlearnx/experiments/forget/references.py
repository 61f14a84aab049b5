"""Reference models of a study that were trained before and lie in files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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


def described(file: Path) -> dict[str, Any]:
    """What a trial says of a model that was read from a file."""
    return {"read_from": file.name, "seconds_are_estimated": True}
