"""Making a trial again from its recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from unlearnx.experiments.forget.studies import FORGETTING
from unlearnx.experiments.forget.study import ForgetStudy
from unlearnx.experiments.forget.trials import REFERENCES, SeedTrials
from unlearnx.experiments.recipes import from_recipe
from unlearnx.experiments.run_store import Entry, Recipe, RunStore, differing


def repeat(
    recipe: Recipe,
    folder: Path,
    *,
    beside: Path,
    root: Path | None = None,
    progress: bool = True,
    log: Callable[[str], None] = lambda line: None,
) -> Entry:
    """Make the trial of a recipe again; returns the new trial.

    Args:
        recipe: of the trial.
        folder: of the new run. If it holds the trial already, that one is returned.
        beside: folder of the original and the retrained model. If they are not there, or were made by another recipe,
            they are trained.
        root: folder of the data, if it has moved.
        progress: show progress bars.
        log: is called with a line for each step.

    Raises:
        ValueError: the recipe is not of a study of forgetting, is not valid, or belongs to the run in `folder`.
    """
    study = replace(_study_of(recipe, root), progress=progress, log=log)
    store, name, seed = RunStore(folder, log), recipe["model"], recipe["seed"]
    method = study.methods.get(name)
    again = study.recipe(name, seed, method)
    if store.file(again).parent.resolve() == beside.resolve():
        raise ValueError(f"folder: {folder} is the run that the recipe belongs to, expected another one")
    if other := differing(recipe, again):
        log(f"seed {seed}, {name}: recorded with a different {', '.join(other)}")
    if name not in REFERENCES:
        for reference in REFERENCES:
            store.adopt(study.recipe(reference, seed), beside)
    return SeedTrials(study, seed, store).trial(name, method)


def _study_of(recipe: Recipe, root: Path | None) -> ForgetStudy:
    """A study with only the model of a recipe."""
    makers = {study.name: study.make for study in FORGETTING}
    if recipe["experiment"] not in makers:
        raise ValueError(f"recipe: the experiment is {recipe['experiment']!r}, expected one of {', '.join(makers)}")
    options = recipe["options"] if root is None else {**recipe["options"], "root": root}
    method = from_recipe(recipe["method"])
    try:
        study = makers[recipe["experiment"]](**options)
        assert isinstance(study, ForgetStudy)
        return replace(
            study,
            network=from_recipe(recipe["network"]),
            training=from_recipe(recipe["training"]),
            methods={} if method is None else {recipe["model"]: method},
            **recipe["request"],
        )
    except TypeError as error:
        raise ValueError(f"recipe: {error}") from error
