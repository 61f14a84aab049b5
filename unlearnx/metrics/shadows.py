"""Shadow models that unlearn: what membership attacks on unlearning compare an attacked model with."""

from __future__ import annotations

import fcntl
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from unlearnx._arguments import checked
from unlearnx._checks import check_at_least_one, check_fraction, integers, named
from unlearnx._data import Data, as_dataset, left_of, picked, size
from unlearnx._files import make_folder, write_atomically
from unlearnx._models import check_model
from unlearnx._progress import progress_bar
from unlearnx.metrics.outputs import logit_confidence

if TYPE_CHECKING:
    from unlearnx.methods.request import Request

Train = Callable[[Dataset[Any], int], nn.Module]
Unlearn = Callable[[nn.Module, "Request"], Any]
_SAME = re.compile(r" at 0x[0-9a-f]+|, progress=(True|False)")  # what two processes write differently of one thing


class Shadows(NamedTuple):
    """Confidences of shadow models after unlearning.

    Attributes:
        confidence: logit confidences of the candidates, float64 (S, M).
        unlearned: whether a model was trained with a candidate and unlearned it, bool (S, M).

    Example:
        >>> Shadows(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool)).confidence.shape
        torch.Size([2, 3])
    """

    confidence: Tensor
    unlearned: Tensor


@checked
def unlearned_shadows(
    train: Train,
    unlearn: Unlearn,
    data: Data,
    candidates: Any,
    *,
    models: int = 16,
    fraction: float = 0.5,
    folder: Path | str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Shadows:
    """Train shadow models, each with other candidates, make each forget its own, and measure all candidates.

    A coin decides for each candidate and model whether it is in; a candidate in all models, or in none, is drawn again.
    What no model was asked to forget, the data without the candidates, is in all of them. A model without any candidate
    has nothing to unlearn and is measured as it was trained. One of the models may be attacked with the others as
    shadows, each in turn: since the coins know nothing of each other, nothing is found where nothing was left.

    Args:
        train: trains a new model on a dataset, with a seed of its own: ``train(dataset, seed)``.
        unlearn: ``unlearn(model, request)``, such as a method; returns the model, or an Outcome with it.
        data: N samples (x, y).
        candidates: indices of M samples, such as those to forget.
        models: number S of shadow models.
        fraction: how often a candidate is in a model.
        folder: keeps what was measured of each model, in a file of its own: what is there is read, not made again, and
            several processes may fill one folder. A folder belongs to one choice of all arguments. What was made by
            another `train` or `unlearn`, with another seed, of other candidates or of more or fewer samples is refused;
            functions are told apart by their names, methods by their arguments, and samples are not compared.
        seed: of the choice of candidates; model k has the seed ``seed + k``.
        progress: show a progress bar (needs ``unlearnx[experiments]``).

    Raises:
        ValueError: candidates are out of range or given twice, or are all of the data, there are fewer than two models,
            `fraction` is 0 or 1, or the folder holds models that were made otherwise.

    Source: Hayes et al., "Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense of Privacy", 2024,
    algorithm 1.

    Example:
        >>> x, y = torch.randn(60, 4), torch.arange(60) % 3
        >>> shadows = unlearned_shadows(
        ...     lambda data, seed: nn.Linear(4, 3), lambda model, request: model, (x, y), range(10), models=4
        ... )
        >>> shadows.confidence.shape, shadows.unlearned.shape
        (torch.Size([4, 10]), torch.Size([4, 10]))
    """
    from unlearnx.methods.request import Request

    check_at_least_one(models=models)
    check_fraction(fraction=fraction)
    dataset, n = as_dataset(data), size(data)
    chosen = integers("candidates", candidates)
    if not len(chosen) or len(chosen.unique()) < len(chosen) or len(chosen) == n:
        raise ValueError(f"candidates: has {len(chosen)} indices for {n} samples, expected some of them, each once")
    if int(chosen.min()) < 0 or int(chosen.max()) >= n:
        raise ValueError(f"candidates: holds indices from {int(chosen.min())} to {int(chosen.max())} of {n} samples")
    if models < 2:
        raise ValueError(f"models is {models}, expected at least one with and one without each candidate")
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction}, expected a number between 0 and 1")
    masks = _drawn(models, len(chosen), fraction, seed)
    rest = left_of(n, chosen)

    def make(k: int) -> Tensor:
        own = torch.cat([chosen[masks[k]], rest])
        with named(lambda: "train: expected a function that trains a model on a dataset, with a seed, and returns it"):
            model = train(picked(dataset, own), seed + k)
            check_model(model)
        model.eval()
        found: Any = model
        if masks[k].any():
            found = unlearn(model, Request.remove(picked(dataset, own), range(int(masks[k].sum()))))
        return logit_confidence(getattr(found, "model", found), picked(dataset, chosen))

    def asked(k: int) -> dict[str, Any]:
        told = {"train": _SAME.sub("", repr(train)), "unlearn": _SAME.sub("", repr(unlearn))}
        return {"candidates": chosen, "unlearned": masks[k], **told, "samples": n, "seed": seed + k}

    store = None if folder is None else Path(folder)
    rows: list[Tensor | None] = [None] * models
    with progress_bar("Shadow models", models, progress) as advance:
        for wait in (False, True):  # first those that no other process makes, then what the others have made
            for k in range(models):
                if rows[k] is None:
                    rows[k] = make(k) if store is None else _stored(store, k, asked(k), make, wait)
                    advance(int(rows[k] is not None))
    return Shadows(torch.stack([row for row in rows if row is not None]), masks)


def _drawn(models: int, candidates: int, fraction: float, seed: int) -> Tensor:
    """Which models each candidate is in, bool (models, candidates): at least one, and not all."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(models, candidates, generator=generator) < fraction
    for i in range(candidates):
        while masks[:, i].all() or not masks[:, i].any():
            masks[:, i] = torch.rand(models, generator=generator) < fraction
    return masks


def _stored(folder: Path, k: int, asked: dict[str, Any], make: Callable[[int], Tensor], wait: bool) -> Tensor | None:
    """What was measured of model k, made and kept if it is not there; None where another process is about it.

    Raises:
        ValueError: what is there was not made as `asked`.
    """
    make_folder(folder)
    file = folder / f"shadow-{k}.pt"
    with _claim(file.with_suffix(".lock"), wait) as claimed:
        if not claimed:
            return None
        if not file.exists():
            content = {**asked, "confidence": make(k)}
            write_atomically(file, lambda f: torch.save(content, f))
    found = torch.load(file, weights_only=True)
    if not all(torch.equal(found[name], asked[name]) for name in ("candidates", "unlearned")):
        raise ValueError(f"folder: {file} is of a model that unlearned other candidates, expected another folder")
    for name in ("train", "unlearn", "samples", "seed"):
        if (got := found.get(name, "unknown")) != asked[name]:
            raise ValueError(
                f"folder: {file} is of a model whose {name} is {got}, expected {asked[name]}, or another folder"
            )
    confidence: Tensor = found["confidence"]
    return confidence


@contextmanager
def _claim(file: Path, wait: bool) -> Iterator[bool]:
    """Whether this process alone holds the file now; the claim of a process that died is gone with it."""
    with file.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
