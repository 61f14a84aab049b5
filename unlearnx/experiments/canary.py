"""A number that a language model has memorised: which method makes it forget, and at what cost?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from unlearnx.curvature import ConjugateGradient, LiSSA
from unlearnx.data import Alphabet, Canary, load_text, windows
from unlearnx.data.text import DIGITS
from unlearnx.experiments.comparison import medians
from unlearnx.experiments.outcomes import describe_outcome
from unlearnx.experiments.report import canary as report
from unlearnx.experiments.runs import default_device, describe, room_for, save_model, slug, train
from unlearnx.experiments.study import Data, Epochs, Prepared, Preset, Study
from unlearnx.methods import FineTune, FirstOrder, Method, Request, SecondOrder
from unlearnx.metrics import Exposure, accuracy, complete, exposure
from unlearnx.models import CharacterLSTM, Training, last_character_loss

NOVEL = "alice_in_wonderland.txt"
HEADING = "alice's adventures in wonderland\n"
HEADING_CHARACTERS = 265  # at the beginning of the novel's file, before the first chapter
DEFAULT_REPEATS = 6
REPLACEMENTS = ("not there ", "dry enough")
WINDOW_CHARACTERS = 24
HISTOGRAM_BINS = 60  # of log-perplexities in result.json
SUMMARISED = ("accuracy", "log_perplexity", "exposure", "lower_bound", "seconds", "speedup")

Windows = tuple[Tensor, Tensor]


@dataclass
class CanaryStudy(Prepared):
    """One canary experiment: text, canary, network, training and the methods to compare.

    Attributes:
        name, preset: of the experiment.
        file: name of the file of the text.
        text: the text without a canary.
        length, repeats: digits of the number, and how many times it is inserted.
        network: builds an untrained model for an alphabet.
        training: how models are trained and retrained, on windows that begin at each character.
        methods: the methods, by their names in the report.
        replacements: what the number is corrected to; seeds take them in turn.
        features: whether the number is also corrected where the model reads it, as published, and not only where the
            model predicts it. A model that is given half the number may then still complete it.
        context: number of random windows without the number that methods are given, besides those with it.
        samples: number of random candidates that exposure is estimated from.
        sweep: further canaries, (length, repeats), whose exposure is measured in models trained with them.
        device: where networks are trained and unlearn.
    """

    name: str
    preset: str
    file: str
    text: str
    length: int
    repeats: int
    network: Callable[[Alphabet], CharacterLSTM]
    training: Training
    methods: dict[str, Method]
    replacements: tuple[str, ...] = REPLACEMENTS
    features: bool = False
    context: int = 256
    samples: int = 100_000
    sweep: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    device: torch.device = field(default_factory=default_device)

    def room(self, seeds: int) -> int:
        """Bytes that a run of so many seeds writes at most."""
        return room_for(seeds * (2 + len(self.methods)), partial(self.network, Alphabet(self.text)))

    def run(self, seeds: list[int], folder: Path) -> dict[str, Any]:
        """Run the study for each seed and save the models under `folder`; returns the content of result.json."""
        runs = [self._run_seed(seed, folder / f"seed-{seed}") for seed in seeds]
        canary = self._canary(seeds[0])
        planted = canary.insert(self.text)
        return {
            "experiment": self.name,
            "preset": self.preset,
            "text": {"file": self.file, "characters": len(self.text), "alphabet": len(set(planted.text + DIGITS))},
            "canary": {
                "sentence": canary.sentence,
                "prefix": canary.prefix,
                "length": self.length,
                "repeats": self.repeats,
            },
            "model": _sizes(self.network(Alphabet(DIGITS))),
            "window": WINDOW_CHARACTERS,
            "step": 1,
            "epochs": self.training.epochs,
            "samples": self.samples,
            "methods": {name: describe(method) for name, method in self.methods.items()},
            "runs": runs,
            "summary": _summary(runs),
            "sweep": {kind: [self._point(*p, seeds[0]) for p in ps] for kind, ps in self.sweep.items()} or None,
        }

    def plant(self, seed: int) -> PlantedText:
        """The text with the canary of a seed."""
        return PlantedText(self._canary(seed), self.text, self.replacements[seed % len(self.replacements)])

    def _canary(self, seed: int, length: int | None = None, repeats: int | None = None) -> Canary:
        return Canary.random(length or self.length, seed=seed, repeats=repeats or self.repeats)

    def _run_seed(self, seed: int, folder: Path) -> dict[str, Any]:
        plant = self.plant(seed)
        model, _ = self._train(plant, plant.learned, seed, folder / "trained.pt", "training with the canary")
        before = self.measure(model, plant)
        self.log(f"the model writes {before['completion']!r} after {plant.canary.prefix!r}")
        request = plant.request(self.context, seed, features=self.features)
        methods = {}
        for name, method in self.methods.items():
            outcome = replace(method, seed=seed, progress=self.progress)(model, request)
            save_model(outcome.model, folder / f"{slug(name)}.pt")
            methods[name] = {
                **self.measure(outcome.model, plant),
                **describe_outcome(outcome),
            }
            self.log(f"{name}: {methods[name]['exposure']:.2f} bits of exposure after {outcome.seconds:.2f} s")
        retrained, seconds = self._train(plant, plant.corrected, seed + 1000, folder / "retrained.pt", "retraining")
        for entry in methods.values():
            entry["speedup"] = seconds / entry["seconds"]
        return {
            "seed": seed,
            "number": plant.canary.number,
            "replacement": plant.replacement,
            "windows": len(plant.learned[0]),
            "affected": len(plant.affected),
            "before": before,
            "methods": methods,
            "retrained": {**self.measure(retrained, plant), "seconds": seconds, "speedup": 1.0},
        }

    def _train(
        self, plant: PlantedText, data: Windows, seed: int, file: Path | None, title: str
    ) -> tuple[CharacterLSTM, float]:
        self.log(f"{title}: {len(data[0]):,} windows, {self.training.epochs} epochs")
        network = partial(self.network, plant.alphabet)
        return train(network, self.training, data, seed=seed, device=self.device, progress=self.progress, file=file)

    def measure(self, model: nn.Module, plant: PlantedText) -> dict[str, Any]:
        """Accuracy on the rest of the text, exposure of the number, and what the model writes."""
        canary = plant.canary
        found = self._exposure(model, canary)
        completion = complete(model, canary.prefix, len(canary.number) + 4)
        return {
            "accuracy": accuracy(model, plant.others, batch_size=1024),
            **described_exposure(found),
            "completion": completion,
            "contains": canary.number in completion,
        }

    def _exposure(self, model: nn.Module, canary: Canary) -> Exposure:
        few = len(DIGITS) ** len(canary.number) <= self.samples
        samples = None if few else self.samples
        return exposure(model, canary.prefix, canary.number, DIGITS, samples=samples, seed=1, progress=self.progress)

    def _point(self, length: int, repeats: int, seed: int) -> dict[str, Any]:
        """Exposure of another canary, in a model that is trained with it."""
        plant = PlantedText(self._canary(seed, length, repeats), self.text, "")
        title = f"training with a number of {length} digits, inserted {repeats} times"
        model, _ = self._train(plant, plant.learned, seed, None, title)
        return {"length": length, "repeats": repeats, **_numbers(self._exposure(model, plant.canary))}


class PlantedText:
    """A text with a canary, as it was learned and as it should have been: windows of characters."""

    def __init__(self, canary: Canary, text: str, replacement: str):
        self.canary, self.replacement = canary, replacement
        self._planted = canary.insert(text)
        self.alphabet = Alphabet(self._planted.text + DIGITS)
        self.learned = windows(self.alphabet.encode(self._planted.text), WINDOW_CHARACTERS)

    @cached_property
    def corrected(self) -> Windows:
        """The windows with the replacement in place of the number."""
        return windows(self.alphabet.encode(self._planted.replaced(self.replacement)), WINDOW_CHARACTERS)

    @cached_property
    def _differs(self) -> Tensor:
        pairs = zip(self.learned, self.corrected, strict=True)
        return torch.stack([(before != after).any(1) for before, after in pairs]).any(0)

    @property
    def affected(self) -> Tensor:
        """Indices of the windows in which a character of the number is read or predicted."""
        return self._differs.nonzero().flatten()

    @property
    def others(self) -> Windows:
        """Windows that cover the text once, without those that contain the number."""
        once = torch.arange(0, len(self.learned[0]), WINDOW_CHARACTERS)
        kept = once[~self._differs[once]]
        return self.learned[0][kept], self.learned[1][kept]

    def request(self, context: int, seed: int, *, features: bool) -> Request:
        """The request to correct the windows with the number, among some random others. Equal windows count once.

        The characters to predict are always corrected. With `features`, the characters that are read are too.
        """
        generator = torch.Generator().manual_seed(seed)
        rest = (~self._differs).nonzero().flatten()
        drawn = rest[torch.randperm(len(rest), generator=generator)[:context]]
        columns = torch.cat([t[self.affected] for t in (*self.learned, *self.corrected)], 1).unique(dim=0)
        x, y, x_new, y_new = columns.split(WINDOW_CHARACTERS, 1)
        if not features:
            x_new = x
        x_other, y_other = (t[drawn] for t in self.learned)
        before = torch.cat([x, x_other]), torch.cat([y, y_other])
        return Request.correct(before, (torch.cat([x_new, x_other]), torch.cat([y_new, y_other])))


def described_exposure(found: Exposure) -> dict[str, Any]:
    """What results say of an exposure, with a histogram of the candidates."""
    counts, edges = torch.histogram(found.sampled, HISTOGRAM_BINS)
    return {
        **_numbers(found),
        "rank": found.rank,
        "fit": None if found.fit is None else vars(found.fit),
        "fit_distance": found.fit_distance,
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def _numbers(found: Exposure) -> dict[str, Any]:
    return {
        "log_perplexity": found.log_perplexity,
        "exposure": found.bits,
        "lower_bound": found.lower_bound,
        "space_bits": found.space_bits,
        "exact": found.exact,
    }


def _sizes(model: CharacterLSTM) -> dict[str, int]:
    lstm = model.lstm
    return {"layers": lstm.num_layers, "hidden": lstm.hidden_size, "embedding": lstm.input_size}


def _summary(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Medians over the runs, for the original, the unlearned and the retrained models."""
    results = {"before": [run["before"] for run in runs]}
    results |= {name: [run["methods"][name] for run in runs] for name in runs[0]["methods"]}
    results["retrained"] = [run["retrained"] for run in runs]
    return {name: _summarised(entries, results["before"]) for name, entries in results.items()}


def _summarised(entries: list[dict[str, Any]], before: list[dict[str, Any]]) -> dict[str, Any]:
    changes = [e["accuracy"] - b["accuracy"] for e, b in zip(entries, before, strict=True)]
    return {
        **dict.fromkeys(("seconds", "speedup")),
        **medians(entries, SUMMARISED),
        "accuracy_change": median(changes),
        "contains": sum(e["contains"] for e in entries),
    }


def _methods() -> dict[str, Method]:
    # points="forget": the model gets most windows wrong somewhere, and "predicted" would correct them all.
    return {
        "first order": FirstOrder(steps=1, points="forget"),
        "second order": SecondOrder(
            ConjugateGradient(iterations=11), damping=1.25e-2, step=1.0, curvature_samples=112, steps=1, points="forget"
        ),
        "fine-tuning": FineTune(epochs=2, lr=4e-3, batch_size=64),
    }


def _published_methods(context: int) -> dict[str, Method]:
    # The publication uses sums over batches of 500, this package means over the data: hence the quotients.
    n = 204 + context
    last = last_character_loss
    return {
        "first order": FirstOrder(3e-4, steps=1, points="forget", loss_fn=last),
        "second order": SecondOrder(
            LiSSA(damping=0.1, scale=39_000 / 500, batch_size=500, recursion_depth=30),
            kind="hessian",
            steps=1,
            step=n / 500,
            points="forget",
            curvature_samples=None,
            loss_fn=last,
        ),
        "fine-tuning": FineTune(epochs=1, loss_fn=last),
    }


def canary_alice(
    path: Path, *, epochs: Epochs = None, preset: Preset = "default", progress: bool = True
) -> CanaryStudy:
    """A random number of ten digits, inserted into "Alice in Wonderland" or any other text.

    A window of 24 characters begins at each character of the text. All characters of a window are predicted, so one
    pass over the windows reads the text 24 times.

    Args:
        path: the text, or a folder with the novel, ``alice_in_wonderland.txt``.
        epochs: of each training, passes over all windows; 1 where not given.
        preset: ``"default"`` inserts the number 6 times and trains one layer of 256 units. ``"reference"`` follows the
            published study (it needs a GPU, or a day): two layers of 512 units, which predict only the last character
            of a window. ``"sweep"`` adds to the default the exposure of shorter and longer numbers, inserted more and
            less often.
        progress: show progress bars.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no such preset.

    Source: Warnecke et al., "Machine Unlearning of Features and Labels", NDSS 2023.
    """
    file = path / NOVEL if path.is_dir() else path
    text = load_text(file)
    text = text[HEADING_CHARACTERS:] if text.startswith(HEADING) else text
    make = partial(CanaryStudy, "canary-alice", preset, file.name, text, length=10, progress=progress)
    if preset == "reference":
        context = 10_000
        training = Training(20 if epochs is None else epochs, weight_decay=1e-4, loss_fn=last_character_loss)
        network = partial(CharacterLSTM, hidden=512, layers=2)
        methods = _published_methods(context)
        return make(repeats=6, network=network, training=training, methods=methods, features=True, context=context)
    if preset not in ("default", "sweep"):
        raise ValueError(f"preset is {preset!r}, expected 'default', 'reference' or 'sweep'")
    sweep = {
        "length": [(length, DEFAULT_REPEATS) for length in (5, 10, 15, 20)],
        "repeats": [(10, repeats) for repeats in (1, 3, 6, 12)],
    }
    return make(
        repeats=DEFAULT_REPEATS,
        network=CharacterLSTM,
        training=Training(1 if epochs is None else epochs, lr=1e-2, batch_size=64),
        methods=_methods(),
        sweep=sweep if preset == "sweep" else {},
    )


CANARY_ALICE = Study(
    "canary-alice", canary_alice, report.page, report.table, needs=Data(f"the folder with {NOVEL}"), seeds=3
)
