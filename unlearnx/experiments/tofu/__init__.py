"""TOFU: which method makes a language model forget authors, and does it seem never to have read of them?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

from unlearnx.data.tofu import load_tofu
from unlearnx.experiments.named_methods import method_with_arguments
from unlearnx.experiments.report import tofu as report
from unlearnx.experiments.study import Data, Epochs, Preset, Study
from unlearnx.experiments.tofu.methods import candidate, candidates
from unlearnx.experiments.tofu.study import TofuStudy
from unlearnx.losses import causal_lm
from unlearnx.models import Training, load_lm
from unlearnx.models.language import SMOLLM2

__all__ = ["TOFU", "TofuStudy", "tofu"]

ALL_BLOCKS = 10**6
PRESETS = {
    "default": {"authors": 40, "blocks": 10, "epochs": 3, "lr": 1e-3, "batch_size": 8},
    "reference": {"authors": 200, "blocks": ALL_BLOCKS, "epochs": 5, "lr": 1e-5, "batch_size": 32},
}
QUESTIONS = 40
ALL_QUESTIONS = 400


def tofu(
    path: Path,
    *,
    authors: Annotated[int | None, "authors that the model learns about, an even number up to 200"] = None,
    forget: Annotated[int, "percent of the authors that are forgotten"] = 10,
    blocks: Annotated[
        int | None, "blocks of the model that are trained, from the last on; all of them: all weights"
    ] = None,
    source: Annotated[str, "model: a folder, a GGUF file or a package, see load_lm"] = SMOLLM2,
    strengths: Annotated[int, "strengths that are tried of each method, on other authors"] = 3,
    questions: Annotated[
        int | None, "most questions that are measured of each set, of the forget set in writing"
    ] = None,
    methods: Sequence[str] | None = None,
    epochs: Epochs = None,
    preset: Preset = "default",
    progress: bool = True,
) -> TofuStudy:
    """Questions and answers about fictitious authors, of whom some are to be forgotten.

    The first half of the authors are the first ones of the file, the others the last ones, since these have
    paraphrases and wrong answers. The last are forgotten. Strengths are chosen on the first, as many.

    Args:
        path: folder with TOFU's files, or with a folder ``tofu`` that has them.
        authors: how many the model learns about; 40, or all 200 with the preset ``"reference"``.
        forget: percent of them that are forgotten, at least one author.
        blocks: how many blocks are trained, from the last on; 10, or all with the preset ``"reference"``. What is
            before them runs once.
        source: what :func:`unlearnx.models.load_lm` takes.
        strengths: how many are tried of each method, in a geometric grid about its own.
        questions: most that are measured of each set, of the forget set in writing; 40, or all with the preset
            ``"reference"``.
        methods: names of those to compare; all of the study where not given. Others of unlearnx, plug-ins and a user's
            own, ``module:Method``, are taken with their own arguments, but for the loss, where it is the default, and
            the batch size.
        epochs: of each training; 3, or 5 with the preset ``"reference"``.
        preset: ``"default"``, for two cores; ``"reference"``, the published sizes and settings, for a GPU.
        progress: show progress bars.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: there is no such preset or method, a strength is out of the method's range, or the authors cannot be
            divided so.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset is {preset!r}, expected one of {', '.join(map(repr, PRESETS))}")
    chosen = PRESETS[preset]
    batch_size = int(chosen["batch_size"])
    offered = candidates(batch_size)
    compared = {
        name: offered[name] if name in offered else candidate(method_with_arguments(name, offered), batch_size)
        for name in (offered if methods is None else methods)
    }
    training = Training(
        int(chosen["epochs"]) if epochs is None else epochs,
        lr=chosen["lr"],
        batch_size=batch_size,
        weight_decay=0.01,
        loss_fn=causal_lm(),
    )
    most = QUESTIONS if preset == "default" else ALL_QUESTIONS
    study = TofuStudy(
        "tofu",
        preset,
        load_tofu(path),
        int(chosen["authors"]) if authors is None else authors,
        forget,
        partial(load_lm, source),
        int(chosen["blocks"]) if blocks is None else blocks,
        training,
        compared,
        strengths,
        most if questions is None else questions,
        source=source,
        progress=progress,
    )
    study.check()
    return study


TOFU = Study(
    "tofu",
    tofu,
    report.page,
    report.table,
    needs=Data("the folder with TOFU's files"),
    compared=tuple(candidates(1)),
)
