"""The finished parts of a run on disk, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from unlearnx._files import write_atomically
from unlearnx.experiments.runs import save_model, slug, write_json

Recipe = dict[str, Any]
Entry = dict[str, Any]

PARTS = {"experiment", "options", "request", "network", "training", "data", "model", "method", "seed", "versions"}
ADVICE = "options"  # of a recipe: how its data were found, which says nothing about the numbers


def fingerprint(recipe: Recipe) -> str:
    """16 hexadecimal digits that differ between recipes whose numbers may differ."""
    text = json.dumps({key: value for key, value in recipe.items() if key != ADVICE}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differing(recipe: Recipe, other: Recipe) -> list[str]:
    """The parts, such as "training", in which another recipe is not that of the same numbers."""
    return [part for part in recipe if part != ADVICE and recipe[part] != other.get(part)]


class Cells:
    """The cells of a run: what is known of one model of one seed, with the recipe that it was made by.

    A cell is a file ``cells/seed-0/ssd.json`` with the weights in ``ssd.pt`` beside it. The file is written last and
    whole: where it exists the cell is finished.

    Args:
        folder: of the run.
        log: is called with a line for each cell that has to be made anew.
    """

    def __init__(self, folder: Path, log: Callable[[str], None] = lambda line: None):
        self.folder, self.log = folder / "cells", log
        self._found: dict[str, Entry | None] = {}

    def file(self, recipe: Recipe) -> Path:
        """Where the cell of `recipe` is, or will be."""
        return self.folder / f"seed-{recipe['seed']}" / f"{slug(recipe['model'])}.json"

    def checkpoint(self, recipe: Recipe) -> Path:
        """Where a training for this cell, and for no other configuration of it, may keep its state."""
        return self.file(recipe).with_suffix(f".{fingerprint(recipe)}.checkpoint")

    def find(self, recipe: Recipe) -> Entry | None:
        """What was saved for exactly this recipe; None where there is nothing, or something made by another one."""
        key = fingerprint(recipe)
        if key not in self._found:
            self._found[key] = self._read(recipe, key)
        return self._found[key]

    def _read(self, recipe: Recipe, key: str) -> Entry | None:
        file = self.file(recipe)
        if not file.is_file():
            return None
        entry = read_cell(file)
        if entry.get("fingerprint") != key:
            other = ", ".join(differing(recipe, entry["recipe"]))
            self.log(f"seed {recipe['seed']}, {recipe['model']}: was made with other {other}; it is made anew")
            return None
        return entry if file.with_suffix(".pt").is_file() else None

    def save(self, recipe: Recipe, entry: Entry, model: nn.Module) -> Entry:
        """Write a finished cell; returns `entry` as :meth:`find` will."""
        file, key = self.file(recipe), fingerprint(recipe)
        file.unlink(missing_ok=True)  # from here on the weights are no longer those of an older cell
        save_model(model, file.with_suffix(".pt"))
        write_json(file, {"recipe": recipe, "fingerprint": key, **entry})
        for checkpoint in file.parent.glob(f"{file.stem}.*.checkpoint"):
            checkpoint.unlink()
        self._found[key] = saved = read_cell(file)
        return saved

    def adopt(self, recipe: Recipe, folder: Path) -> None:
        """Copy the files that a cell of this seed and model has in `folder`, unless there are some already."""
        file = self.file(recipe)
        for own in (file.with_suffix(".pt"), file):
            source = folder / own.name
            if source.is_file() and not own.exists():
                write_atomically(own, partial(_copy, source))

    def load(self, recipe: Recipe, model: nn.Module) -> nn.Module:
        """The weights of a finished cell in `model`, which is put in eval mode."""
        weights = torch.load(self.file(recipe).with_suffix(".pt"), map_location="cpu", weights_only=True)
        model.load_state_dict(weights)
        return model.eval()


def _copy(source: Path, file: IO[bytes]) -> None:
    file.write(source.read_bytes())


def read_cell(file: Path) -> Entry:
    """What a cell's file holds; a recipe saved alone is a cell without numbers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a cell, nor a recipe.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: is not JSON ({error})") from error
    entry = content if isinstance(content, dict) and "recipe" in content else {"recipe": content}
    if not isinstance(entry["recipe"], dict) or not entry["recipe"].keys() >= PARTS:
        raise ValueError(f"{file}: is neither a cell of a run nor a recipe")
    return entry
