"""The command ``unlearn``: of a network and its samples, or of a language model and its texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unlearnx.experiments import arguments, unlearn
from unlearnx.experiments.unlearn import check_out

TEXTS = ".jsonl"  # ends the name of a file of texts


def unlearn_as_asked(
    *,
    model: str,
    data: str,
    weights: Path | None,
    forget: Path | None,
    test: str | None,
    retrained: Path | None,
    lora: int | None,
    paraphrases: Path | None,
    refusals: Path | None,
    forget_class: int | None,
    **how: Any,
) -> dict[str, Any]:
    """What was done, and its audit; `how` goes on to :func:`_method` and to the run."""
    if data.endswith(TEXTS):
        for option, value in (("--weights", weights), ("--forget-class", forget_class)):
            if value is not None:
                raise ValueError(f"{option} is given with texts (--data {data}), which have no such thing")
        return _of_texts(model, Path(data), forget, test, retrained, lora, paraphrases, refusals, **how)
    for option, value in (("--lora", lora), ("--paraphrases", paraphrases), ("--refusals", refusals)):
        if value is not None:
            raise ValueError(f"{option} is for language models, expected --data FILE{TEXTS}, got {data!r}")
    check_out(how["out"])  # before the user's functions load anything
    method, common = _method(how)
    build, file = arguments.model(model, weights)
    return unlearn(
        model_factory=build,
        weights=file,
        data=arguments.data("--data", data),
        forget=None if forget is None else arguments.read_indices(forget),
        forget_class=forget_class,
        test=None if test is None else arguments.data("--test", test),
        retrained=retrained,
        method=method,
        **common,
    )


def _of_texts(
    model: str,
    data: Path,
    forget: Path | None,
    test: str | None,
    retrained: Path | None,
    lora: int | None,
    paraphrases: Path | None,
    refusals: Path | None,
    **how: Any,
) -> dict[str, Any]:
    from unlearnx.experiments.unlearn_texts import BATCH_SIZE, LEARNING_RATE, unlearn_texts
    from unlearnx.models.language import is_adapter, place_of

    source = _source("--model", model)
    if forget is None:
        raise ValueError(f"--forget is missing, expected a file of texts ({TEXTS}) or of indices")
    adapted = lora is not None or is_adapter(place_of("--model", source))
    given = {"lr": LEARNING_RATE[adapted]} if arguments.leaves_open(how["method"], "lr") else {}
    method, common = _method({**how, "batch_size": how["batch_size"] or BATCH_SIZE}, **given)
    return unlearn_texts(
        model=source,
        data=data,
        forget=forget if forget.suffix == TEXTS else arguments.read_indices(forget),
        test=None if test is None else Path(test),
        retrained=None if retrained is None else str(retrained).removeprefix(f"{arguments.HUGGING_FACE}:"),
        lora=lora,
        paraphrases=paraphrases,
        refusals=refusals,
        method=method,
        **common,
    )


def _method(how: dict[str, Any], **given: Any) -> tuple[Any, dict[str, Any]]:
    """The method, with fields that are `given` where no option sets them, and what else is known of the run."""
    given |= {name: how[name] for name in ("params", "seed", "batch_size", "progress")}
    given["params"] = arguments.parameters(given["params"])
    used = {"method", "option", "params", "seed", "batch_size", "progress"}
    method = arguments.build_method(how["method"], how["option"] or [], **given)
    return method, {name: value for name, value in how.items() if name not in used}


def _source(option: str, value: str) -> str:
    kind, _, source = value.partition(":")
    if kind != arguments.HUGGING_FACE or not source:
        raise ValueError(
            f"{option} is {value!r}, expected {arguments.HUGGING_FACE}:FOLDER with a file of texts as --data"
        )
    return source
