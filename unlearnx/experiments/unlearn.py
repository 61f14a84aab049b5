"""Unlearning in a user's own model, with an audit of what was done and what it changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from unlearnx._batches import Nest, scores, take, tensors
from unlearnx._data import Data, materialize
from unlearnx._files import check_room
from unlearnx._random import forked_random
from unlearnx.curvature import Factors
from unlearnx.experiments import report
from unlearnx.experiments.audit import check_takes_factors, fingerprint, moved, of_run
from unlearnx.experiments.output_folder import MIN_ROOM, claimed
from unlearnx.experiments.request_evaluation import RequestEvaluation
from unlearnx.experiments.runs import chosen_device
from unlearnx.experiments.weights import Weights, state_tensors, tensor_hash
from unlearnx.losses import cross_entropy
from unlearnx.methods import Method, Request, judge
from unlearnx.metrics.outputs import each_batch

RESULTS = ("audit.json", "audit.html", "weights.safetensors", "weights.pt")

Log = Callable[[str], None]


def unlearn(
    *,
    model_factory: Callable[[], nn.Module],
    weights: Path,
    data: Data,
    method: Method,
    out: Path,
    forget: Sequence[int] | Tensor | None = None,
    forget_class: int | None = None,
    test: Data | None = None,
    retrained: Path | None = None,
    factors: Path | None = None,
    device: torch.device | str | None = None,
    command: str = "unlearnx.experiments.unlearn",
    log: Log = lambda line: None,
) -> dict[str, Any]:
    """Make a trained classifier forget; write its new weights and an audit.

    ``out`` then holds ``audit.json`` and ``audit.html``, and the new weights as ``weights.safetensors`` or
    ``weights.pt``, in the format of the weights given. If the method was not applied there are no weights, and the
    audit says why. Where anything goes wrong, `out` is left as it was.

    Args:
        model_factory: builds the model, with any weights. It returns class scores (N, classes), or an object with such
            logits, of which the method's ``F.cross_entropy`` is then taken.
        weights: file of its trained weights (see :class:`unlearnx.experiments.weights.Weights`).
        data: what it was trained on, pairs or mappings, with classes as labels. A DataLoader stands for its dataset, in
            the dataset's order.
        method: how to forget; one that needs untrained models, as ``Retrain`` does, gets them from the factory.
        out: folder without an audit or weights of an earlier run.
        forget: indices into the data; give either this or `forget_class`.
        forget_class: number of the class to forget, with all of its samples.
        test: data that the model was not trained on; without it there are no membership attacks, and the verdict on
            samples rests on less.
        retrained: file of weights of a model that was trained without the forget set, to compare with.
        factors: file of the training data's Kronecker factors (see :meth:`unlearnx.curvature.Factors.save`), fitted for
            these weights, for a method that takes them.
        device: where to compute; None for the GPU where there is one.
        command: command line to record in the audit.
        log: is called with a line for each step.

    Returns:
        The audit: what audit.json holds.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: weights, factors, model and data do not fit each other, the method takes no factors, the indices are
            not valid for the data, or `out` holds results already or is used by another run; and as for the method.
        OSError: `out` cannot be written to, or the disk is too full.
    """
    started = datetime.now(timezone.utc)
    check_takes_factors(method, factors)
    with claimed(out, RESULTS), _whole_or_nothing(out):
        where = chosen_device(device)
        stored = Weights.read(Path(weights))
        check_room(out, MIN_ROOM + sum(t.numel() * t.element_size() for t in stored.tensors.values()))
        model = _built(model_factory, stored, where)
        other = None if retrained is None else Weights.read(Path(retrained))
        reference = None if other is None else _built(model_factory, other, where)
        if factors is not None:
            method = replace(method, factors=Factors.load(Path(factors), model))  # type: ignore[call-arg]
        for read in (stored, other):
            if read is not None and (said := read.described(model)):
                log(said)
        x, y = _pair("data", data)
        request = _request(x, y, forget, forget_class)
        held_out = None if test is None else _pair("test", test)
        for name, pair in (("data", (x, y)), ("test", held_out)):
            if pair is not None:
                returns_tensor = _check_fits(name, model, *pair)
        if not returns_tensor and method.loss_fn is F.cross_entropy:
            method = replace(method, loss_fn=cross_entropy)
        if held_out is not None:
            request = request.with_held_out(held_out)
        evaluation = RequestEvaluation(method, request, held_out, forget_class, returns_tensor=returns_tensor)

        log(f"{len(request.forget):,} of {len(y):,} samples to forget")
        models, measures = {"before": model}, {"before": evaluation.measure(model)}
        outcome = _with_factory(method, model_factory)(model, request)
        applied = outcome.applied
        log(f"{type(method).__name__}: {'applied' if applied else 'not applied'} after {outcome.seconds:.1f} s")
        forgotten, evidence = outcome.forgotten, outcome.evidence
        if reference is not None:
            forgotten, evidence = judge(model, outcome.model, request, reference)
        if applied:
            models["after"], measures["after"] = outcome.model, evaluation.measure(outcome.model)
        if reference is not None:
            models["retrained"], measures["retrained"] = reference, evaluation.measure(reference)

        audit = {
            **of_run(method, request, outcome, forget_class=forget_class, started=started, where=where),
            "forgotten": forgotten,
            "evidence": evidence,
            "measures": measures,
            "sizes": evaluation.sizes,
            "read": evaluation.read,
            "distances": evaluation.distances(models),
            "gap": evaluation.gaps(measures),
            "warning": evaluation.warning(models, evidence),
            "notes": evaluation.notes,
            "moved": moved(state_tensors(model), state_tensors(outcome.model)),
            "weights": {
                "before": {**_identity(stored), "left_out": stored.left_out},
                "after": _identity(stored.write(outcome.model, out / "weights")) if applied else None,
                "retrained": None if other is None else _identity(other),
            },
            "data": {
                "train": fingerprint(x, y),
                "forget": fingerprint(take(x, request.forget), y[request.forget]),
                "test": None if held_out is None else fingerprint(*held_out),
            },
            "command": command,
        }
        report.write_audit(audit, out)
        return audit


def check_out(out: Path) -> None:
    """Refuse a folder that :func:`unlearn` would refuse; what a killed run left in it is removed.

    Raises:
        ValueError, OSError: as for :func:`unlearn`.
    """
    with claimed(out, RESULTS):
        _remove_results(out)


@contextmanager
def _whole_or_nothing(out: Path) -> Iterator[None]:
    """Remove results from `out`: those that a killed run left there, and those of this one where it fails."""
    _remove_results(out)
    try:
        yield
    except BaseException:
        _remove_results(out)
        raise


def _remove_results(out: Path) -> None:
    for name in RESULTS:
        (out / name).unlink(missing_ok=True)


def _with_factory(method: Method, factory: Callable[[], nn.Module]) -> Method:
    """The method with the factory of models, if it takes one and has none of its own."""
    if getattr(method, "factory", factory) is None:
        return replace(method, factory=factory)  # type: ignore[call-arg]
    return method


def _built(factory: Callable[[], nn.Module], weights: Weights, device: torch.device) -> nn.Module:
    """A model from the factory with these weights, in eval mode."""
    with forked_random(device):
        model = factory()
    if not isinstance(model, nn.Module):
        raise ValueError(f"model_factory: returned {type(model).__name__}, expected a torch.nn.Module")
    weights.load_into(model)
    return model.to(device).eval()


def _pair(name: str, data: Data) -> tuple[Nest, Tensor]:
    """All inputs and labels as tensors, in the order of the dataset. Both the method and the hashes use these."""
    try:
        x, y = materialize(data.dataset if isinstance(data, DataLoader) else data)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: cannot be read as samples (x, y): {error}") from error
    if not isinstance(y, Tensor) or y.dim() != 1 or y.is_floating_point() or y.dtype == torch.bool:
        what = f"{y.dtype} of shape {list(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
        raise ValueError(f"{name}: labels are {what}, expected class indices (N,)")
    return x, y.long()


def _request(x: Nest, y: Tensor, forget: Sequence[int] | Tensor | None, forget_class: int | None) -> Request:
    if (forget is None) == (forget_class is None):
        raise ValueError(f"forget, forget_class: {'neither' if forget is None else 'both'} given, expected one of them")
    if forget is not None:
        return Request.remove((x, y), forget)
    assert forget_class is not None
    return Request.remove_class((x, y), forget_class)


def _check_fits(name: str, model: nn.Module, x: Nest, y: Tensor) -> bool:
    """Refuse data that the model does not take; returns whether its outputs are tensors."""
    try:
        (output,) = each_batch((model,), (take(x, slice(0, 2)), y[:2]), 2, None, lambda output, y: output)
        found = scores(output)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        kinds = ", ".join(f"shape {list(t.shape[1:])} and {t.dtype}" for t in tensors(x))
        raise ValueError(f"{name}: the model cannot read samples of {kinds}: {error}") from error
    if found.dim() != 2 or found.shape[1] < 2:
        raise ValueError(
            f"model_factory: it returned scores of shape {list(found.shape)}, expected (N, classes), classes >= 2"
        )
    outside = y[(y < 0) | (y >= found.shape[1])]
    if len(outside):
        raise ValueError(f"{name}: label {int(outside[0])} is out of range for the model's {found.shape[1]} classes")
    return isinstance(output, Tensor)


def _identity(weights: Weights) -> dict[str, str]:
    return {
        "file": str(weights.file),
        "format": weights.format,
        "sha256": weights.sha256,
        "tensors_sha256": tensor_hash(weights.tensors),
    }
