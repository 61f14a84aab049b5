"""The finished trials of a run on disk, so that a run that was stopped goes on where it was.

A *trial* is one model of one seed: trained or unlearned, and measured.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

from torch import nn

from unlearnx._files import write_atomically
from unlearnx.experiments.outcomes import with_fields
from unlearnx.experiments.runs import save_model, slug, write_json
from unlearnx.experiments.weights import Weights

Recipe = dict[str, Any]
Entry = dict[str, Any]

RECIPE_PARTS = {
    "experiment",
    "options",
    "request",
    "network",
    "training",
    "data",
    "model",
    "method",
    "seed",
    "versions",
}
DATA_OPTIONS = "options"  # the part of a recipe that says where the data lie: the numbers do not depend on it


def fingerprint(recipe: Recipe) -> str:
    """16 hexadecimal digits that identify a recipe: equal digits mean that the numbers must be equal."""
    text = json.dumps({key: value for key, value in recipe.items() if key != DATA_OPTIONS}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differing(recipe: Recipe, other: Recipe) -> list[str]:
    """The parts of two recipes that differ and may change the numbers, such as ``["training"]``."""
    return [part for part in recipe if part != DATA_OPTIONS and recipe[part] != other.get(part)]


class RunStore:
    """Reads and writes the trials of a run.

    A trial is a file such as ``trials/seed-0/ssd.json``, which holds its numbers and the recipe that makes them again,
    with the model's weights in ``ssd.pt`` beside it where they are kept. The JSON file is written last and in one step,
    so a trial whose JSON file exists is finished.

    Args:
        folder: of the run.
        log: is called with a line for each trial that has to be made anew.
    """

    def __init__(self, folder: Path, log: Callable[[str], None] = lambda line: None):
        self.folder, self.log = folder / "trials", log
        self._found: dict[str, Entry | None] = {}

    def file(self, recipe: Recipe) -> Path:
        """The JSON file of the trial that `recipe` makes, whether it exists or not."""
        return self.folder / f"seed-{recipe['seed']}" / f"{slug(recipe['model'])}.json"

    def checkpoint(self, recipe: Recipe) -> Path:
        """Where the training of this trial saves its state. Another recipe for the same model gets another file."""
        return self.file(recipe).with_suffix(f".{fingerprint(recipe)}.checkpoint")

    def find(self, recipe: Recipe) -> Entry | None:
        """The trial saved for exactly this recipe; None if there is none, or if another recipe made it."""
        key = fingerprint(recipe)
        if key not in self._found:
            self._found[key] = self._read(recipe, key)
        return self._found[key]

    def _read(self, recipe: Recipe, key: str) -> Entry | None:
        file = self.file(recipe)
        if not file.is_file():
            return None
        entry = read_trial(file)
        if entry.get("fingerprint") != key:
            other = ", ".join(differing(recipe, entry["recipe"]))
            self.log(f"seed {recipe['seed']}, {recipe['model']}: was made with a different {other}; making it again")
            return None
        return entry if not entry.get("kept", True) or file.with_suffix(".pt").is_file() else None

    def save(self, recipe: Recipe, entry: Entry, model: nn.Module | None) -> Entry:
        """Write a finished trial; returns `entry` as :meth:`find` will.

        Args:
            model: whose weights are kept; None where the numbers alone are.
        """
        file, key = self.file(recipe), fingerprint(recipe)
        file.unlink(missing_ok=True)  # the weights are about to change: an older trial is no longer valid
        if model is None:
            entry = {**entry, "kept": False}
        else:
            save_model(model, file.with_suffix(".pt"))
        write_json(file, {"recipe": recipe, "fingerprint": key, **entry})
        for checkpoint in file.parent.glob(f"{file.stem}.*.checkpoint"):
            checkpoint.unlink()
        self._found[key] = saved = read_trial(file)
        return saved

    def adopt(self, recipe: Recipe, folder: Path) -> None:
        """Copy the trial of this seed and model from `folder`, unless this run has one already."""
        file = self.file(recipe)
        for own in (file.with_suffix(".pt"), file):
            source = folder / own.name
            if source.is_file() and not own.exists():
                write_atomically(own, partial(_copy, source))

    def load(self, recipe: Recipe, model: nn.Module) -> nn.Module:
        """Load the weights of a finished trial into `model`, and put it in eval mode.

        Raises:
            ValueError: the file is damaged or of another model.
        """
        Weights.read(self.file(recipe).with_suffix(".pt")).load_into(model)
        return model.eval()


def _copy(source: Path, file: IO[bytes]) -> None:
    file.write(source.read_bytes())


def read_trial(file: Path) -> Entry:
    """What the JSON file of a trial holds. A file with a recipe alone counts as a trial without numbers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is neither a trial nor a recipe, or its seed or model is none.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: expected JSON, got something else ({error})") from error
    entry = content if isinstance(content, dict) and "recipe" in content else {"recipe": content}
    if not isinstance(entry["recipe"], dict) or not entry["recipe"].keys() >= RECIPE_PARTS:
        raise ValueError(f"{file}: expected a trial of a run or its recipe, got other JSON")
    seed, model = entry["recipe"]["seed"], entry["recipe"]["model"]
    if type(seed) is not int or seed < 0:
        raise ValueError(f"{file}: the seed is {seed!r}, expected an integer >= 0")
    if not isinstance(model, str):
        raise ValueError(f"{file}: the model is {model!r}, expected its name")
    return with_fields(entry)
