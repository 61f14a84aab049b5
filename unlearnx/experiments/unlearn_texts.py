"""Unlearning in a language model, of texts that are named line by line, with an audit."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unlearnx._files import check_room
from unlearnx.curvature import Factors
from unlearnx.data import Text, read_texts
from unlearnx.experiments import report
from unlearnx.experiments.adapters import with_lora
from unlearnx.experiments.audit import check_takes_factors, moved, of_run
from unlearnx.experiments.output_folder import MIN_ROOM, claimed
from unlearnx.experiments.refusals import REFUSALS, read_refusals, refused
from unlearnx.experiments.runs import chosen_device
from unlearnx.experiments.text_loss import with_text_loss
from unlearnx.experiments.text_measures import TextMeasures, judge_by_retrained
from unlearnx.experiments.text_samples import Sample, dataset_of, tokens_of
from unlearnx.experiments.weights import state_tensors, tensor_hash
from unlearnx.methods import IDK, Method, Request, judge
from unlearnx.methods.evidence import too_much
from unlearnx.models.language import ADAPTER, dtype_of, load_lm, place_of, positions_of

BATCH_SIZE = 8  # texts in a pass where none is given
LEARNING_RATE = {False: 1e-5, True: 1e-4}  # of a method that trains, where none is given: of all weights, of an adapter
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
RESULTS = ("audit.json", "audit.html", "config.json", ADAPTER, *WEIGHTS)
UNFINISHED = ".result."  # begins the name of the folder in which results are until they are whole

Log = Callable[[str], None]


def unlearn_texts(
    *,
    model: str | Path,
    data: Path,
    forget: Path | Sequence[int] | Tensor,
    method: Method,
    out: Path,
    lora: int | None = None,
    test: Path | None = None,
    paraphrases: Path | None = None,
    refusals: Path | None = None,
    retrained: str | Path | None = None,
    factors: Path | None = None,
    device: torch.device | str | None = None,
    command: str = "unlearnx.experiments.unlearn_texts",
    log: Log = lambda line: None,
) -> dict[str, Any]:
    """Make a language model forget texts; write its new weights, or its adapter, its tokenizer and an audit.

    ``out`` then holds what transformers, or peft, loads, and ``audit.json`` and ``audit.html``. If the method was not
    applied there are no weights, and the audit says why. Where anything goes wrong, `out` is left as it was.

    The model is computed in float32. Weights of a folder in half precision are written in it again, and what is
    measured and judged is what they are then.

    Args:
        model: what :func:`unlearnx.models.load_lm` takes. Of an adapter's folder, the adapter alone is changed.
        data: JSON lines of the texts that it was trained on (see :func:`unlearnx.data.read_texts`).
        forget: JSON lines of those to forget, each of which has to be in `data`; all lines there that equal it are
            forgotten. Or indices of the lines.
        method: how to forget. Its loss is :func:`unlearnx.losses.causal_lm` unless it has one of its own: the mean over
            a text's tokens, or their sum where its paper has that (``NPO``, ``IDK``).
        out: folder without results of an earlier run.
        lora: rank of a fresh adapter on all linear layers within the model, which alone is changed; None for none.
        test: JSON lines of texts of the same kind as those to forget that the model was not trained on: they tell how
            much is to be forgotten, whether it is, and how well a membership attack tells the two apart.
        paraphrases: JSON lines of the texts to forget in other words, which are measured as these are.
        refusals: JSON lines of answers that decline, ``{"text"}`` each. Those to forget are then corrected: each gets
            one of these for its answer, in turn. ``IDK``, which needs such, has four of its own where none are given.
        retrained: a model that was trained without the texts to forget, which tells better whether they are forgotten.
        factors: file of the training data's Kronecker factors, for a method that takes them.
        device: where to compute; None for the GPU where there is one.
        command: command line to record in the audit.
        log: is called with a line for each step.

    Returns:
        The audit: what audit.json holds.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a line is of another form, longer than the model has positions, to be forgotten but not in `data`,
            or to be refused and asks nothing; `lora` is given for an adapter; the method takes no factors; or `out`
            holds results already; and as for the method.
        OSError: `out` cannot be written to, or the disk is too full.
    """
    started = datetime.now(timezone.utc)
    check_takes_factors(method, factors)
    with claimed(out, RESULTS), _result_in(out) as folder:
        where = chosen_device(device)
        if retrained is not None:
            place_of("retrained", retrained)
        texts = read_texts(data)
        chosen = _lines_of(texts, read_texts(forget), data) if isinstance(forget, Path) else forget
        given = {"test": test, "paraphrases": paraphrases}
        more = {name: read_texts(file) for name, file in given.items() if file is not None}
        answers = read_refusals(refusals) if refusals is not None else REFUSALS if isinstance(method, IDK) else None
        loaded, tokenizer = load_lm(model)
        check_room(out, MIN_ROOM + sum(p.nbytes for p in loaded.parameters()))
        adapted: Any = loaded if lora is None else with_lora(loaded, lora, seed=method.seed)
        original: nn.Module = adapted.to(where)
        if factors is not None:
            method = replace(method, factors=Factors.load(Path(factors), original))  # type: ignore[call-arg]
        method = with_text_loss(method)
        tokens, *rest = (tokens_of(read, tokenizer, positions_of(original)) for read in (texts, *more.values()))
        others = dict(zip(more, rest, strict=True))
        request = Request.remove(dataset_of(tokens), chosen)
        if answers is not None:
            corrected = _refusing(texts, request.forget.tolist(), answers)
            request = replace(request, corrected=dataset_of(tokens_of(corrected, tokenizer, positions_of(original))))
        if test is not None:
            request = request.with_held_out(dataset_of(others["test"]))
        measures = TextMeasures(
            request,
            *(dataset_of(others[name]) if name in others else None for name in given),
            batch_size=method.batch_size,
            seed=method.seed,
        )
        if answers is not None:
            measures.notes.append(
                f"Texts to forget got one of {len(answers)} refusals in turn, such as {answers[0]!r}."
            )

        log(f"{len(request.forget):,} of {len(texts):,} texts to forget")
        table: dict[str, dict[str, float | None]] = {"before": measures.measure(original)}
        outcome = method(original, request)
        log(f"{type(method).__name__}: {'applied' if outcome.applied else 'not applied'} after {outcome.seconds:.1f} s")
        forgotten, evidence = outcome.forgotten, outcome.evidence
        if outcome.applied:
            stored = torch.float32 if hasattr(original, "peft_config") else dtype_of(place_of("model", model))
            if stored != torch.float32:
                _round(outcome.model, stored)
                forgotten, evidence = judge(original, outcome.model, request, batch_size=method.batch_size)
                measures.notes.append(f"Weights are written in {stored}, as they were read; the measures are of these.")
            table["after"] = measures.measure(outcome.model)
            save_lm(outcome.model, tokenizer, folder, stored)
        if retrained is not None:
            other: Any = load_lm(retrained)[0]
            other = other.to(where)
            table["retrained"] = measures.measure(other)
            losses = (measures.losses(model) for model in (original, outcome.model, other))
            forgotten, evidence = judge_by_retrained(*losses)
        audit = {
            **of_run(method, request, outcome, started=started, where=where),
            "forgotten": forgotten,
            "evidence": evidence,
            "measures": table,
            "sizes": measures.sizes,
            "distances": None,
            "gap": None,
            "warning": too_much(evidence) if outcome.applied else None,
            "notes": measures.notes,
            "moved": moved(state_tensors(original), state_tensors(outcome.model)),
            "weights": {
                "before": {**_identity(place_of("model", model), original), "left_out": ()},
                "after": {**_identity(folder, outcome.model), "file": str(out)} if outcome.applied else None,
                "retrained": None if retrained is None else _identity(place_of("retrained", retrained), other),
            },
            "data": {
                "train": _fingerprint(tokens),
                "forget": _fingerprint([tokens[i] for i in request.forget.tolist()]),
                **{name: _fingerprint(others[name]) if name in others else None for name in given},
            },
            "command": command,
        }
        report.write_audit(audit, folder)
        return audit


def save_lm(model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write what transformers, or peft, and :func:`unlearnx.models.load_lm` load again, with weights in a dtype."""
    base = Path(getattr(model, "name_or_path", ""))
    # peft would ask the network whether the model's vocabulary has grown
    form = {"save_embedding_layers": "auto" if (base / "config.json").is_file() else False}
    model.config.use_cache = True  # whoever loads it may write with it
    try:
        with _in_dtype(model, dtype):
            model.save_pretrained(folder, **(form if hasattr(model, "peft_config") else {}))
    finally:
        model.config.use_cache = False
    (folder / "README.md").unlink(missing_ok=True)  # a form of peft's to fill in
    tokenizer.save_pretrained(folder)


def _round(model: nn.Module, dtype: torch.dtype) -> None:
    """Round parameters in place to what a file of that dtype holds of them."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.to(dtype))


@contextmanager
def _in_dtype(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within this context the parameters are in a dtype; buffers, which are not all written, stay as they are."""
    own = {p: p.data for p in model.parameters()}
    for p, values in own.items():
        p.data = values.to(dtype)
    try:
        yield
    finally:
        for p, values in own.items():
            p.data = values


def _lines_of(texts: Sequence[Text], forget: Sequence[Text], data: Path) -> list[int]:
    """The indices of the texts that are equal to one to forget."""
    places: dict[Text, list[int]] = {}
    for i, text in enumerate(texts):
        places.setdefault(text, []).append(i)
    for text in forget:
        if text not in places:
            raise ValueError(f"{text.origin}: is not in {data}, expected one of its texts, letter for letter")
    return sorted({i for text in forget for i in places[text]})


def _refusing(texts: Sequence[Text], forget: Sequence[int], answers: Sequence[str]) -> list[Text]:
    """The texts, of which those to forget are answered by refusals, in turn."""
    found = list(texts)
    for k, i in enumerate(forget):
        found[i] = refused(texts[i], answers[k % len(answers)])
    return found


@contextmanager
def _result_in(out: Path) -> Iterator[Path]:
    """A folder whose files are moved to `out` at the end; they are not where anything fails."""
    for left in out.glob(f"{UNFINISHED}*"):  # by a run that was killed
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=out, prefix=UNFINISHED) as name:
        yield Path(name)
        for file in sorted(Path(name).iterdir()):
            file.replace(out / file.name)


def _identity(place: Path, model: nn.Module) -> dict[str, str]:
    """Where weights lie, and their hashes: of the files, joined in the order of their names, and of the tensors."""
    files = (
        [place]
        if place.is_file()
        else sorted(f for f in place.iterdir() if f.suffix in (".safetensors", ".bin", ".gguf"))
    )
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return {
        "file": str(place),
        "format": files[0].suffix.removeprefix("."),
        "sha256": digest.hexdigest(),
        "tensors_sha256": tensor_hash(state_tensors(model)),
    }


def _fingerprint(samples: Sequence[Sample]) -> dict[str, Any]:
    """Number of texts, and the hash of their tokens, labels and lengths."""
    tokens = {
        "input_ids": torch.cat([x["input_ids"] for x, _ in samples]),
        "labels": torch.cat([labels for _, labels in samples]),
        "lengths": torch.tensor([len(labels) for _, labels in samples]),
    }
    return {"samples": len(samples), "sha256": tensor_hash(tokens)}
