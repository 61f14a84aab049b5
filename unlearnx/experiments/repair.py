"""Repairing a model that learned from noisy data: identify the samples to blame, repair the model, evaluate."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from unlearnx._checks import check_at_least_one
from unlearnx._data import left_of
from unlearnx.data import Splits, load_mnist, noisy_inputs, noisy_labels
from unlearnx.experiments.blame_scores import SCORES, UNSEEN, Pair, Suspects, doubted, judged, scored, worst
from unlearnx.experiments.comparison import medians
from unlearnx.experiments.outcomes import describe_outcome
from unlearnx.experiments.report import repair as report
from unlearnx.experiments.runs import default_device, describe, room_for, save_model, slug, train
from unlearnx.experiments.study import Data, Epochs, Prepared, Preset, Study, check_preset
from unlearnx.methods import EnergyAlignment, EWCRepair, FineTune, Method, NewtonRepair, Pipeline, Request
from unlearnx.metrics import accuracy, predict
from unlearnx.models import Training, mnist_cnn

NOISES = ("labels", "inputs")
SHOWN_IMAGES = 24  # in the report, those with the worst scores
RANDOM_ORDER = "at random"  # the order of removal that scores are compared with
REMOVED_SHARES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # samples removed for the curves, divided by spoilt ones


@dataclass(frozen=True)
class Treatment:
    """A method as the study applies it.

    Attributes:
        method: the method, with the parameters it may change.
        relabels: whether the samples found get the proposed labels; otherwise they are removed.
    """

    method: Method | Pipeline
    relabels: bool = False


@dataclass
class RepairStudy(Prepared):
    """One study of repairing: data, noise, network, training and the treatments to compare.

    Attributes:
        name: of the experiment.
        splits: the clean data.
        network: builds an untrained model.
        training: how the clean, the noisy and the retrained network are trained.
        treatments: the treatments, by their names in the report.
        noise: share of the training samples that is spoilt.
        noise_kind: what is spoilt, ``"labels"`` or ``"inputs"``.
        validation: number of training samples that are held out and stay clean: failures are found among them.
        folds: of the cross-validation, in which each sample is scored by a network that was trained without it.
        fold_training: how these networks are trained.
        removal: further training without the worst samples, for the curves.
        curves: names of the scores that curves are made for.
        device: where networks are trained and unlearn.

    Raises:
        ValueError: the noise spoils no sample or all of them, its kind is unknown, or no training samples are left.
    """

    name: str
    splits: Splits
    network: Callable[[], nn.Module]
    training: Training
    treatments: dict[str, Treatment]
    noise: float = 0.2
    noise_kind: str = "labels"
    validation: int = 1000
    folds: int = 4
    fold_training: Training = field(default_factory=lambda: Training(6, lr=5e-3))
    removal: FineTune = field(default_factory=FineTune)
    curves: tuple[str, ...] = (UNSEEN, "linear influence", "training loss")
    device: torch.device = field(default_factory=default_device)

    def __post_init__(self) -> None:
        check_at_least_one(validation=self.validation)
        if self.folds < 2:
            raise ValueError(f"folds is {self.folds}, expected at least 2")
        if self.noise_kind not in NOISES:
            raise ValueError(f"noise_kind is {self.noise_kind!r}, expected {' or '.join(NOISES)}")
        n = len(self.splits.train_x) - self.validation
        if n < self.folds:
            raise ValueError(
                f"validation is {self.validation}, which leaves {max(n, 0)} for training, expected {self.folds} or more"
            )
        if not isinstance(self.noise, (int, float)) or not 0 < round(self.noise * n) < n:
            raise ValueError(f"noise is {self.noise}, expected a share of {n} samples, neither none nor all of them")

    def room(self, seeds: int) -> int:
        """Bytes that a run of so many seeds writes at most."""
        return room_for(seeds * (3 + len(self.treatments)), self.network)

    def run(self, seeds: list[int], folder: Path) -> dict[str, Any]:
        """Run the study for each seed and save the models under `folder`; returns the content of result.json."""
        runs, pictures = [], []
        for seed in seeds:
            one = _SeedRun(self, seed, folder / f"seed-{seed}")
            runs.append(one.run())
            pictures.append(one.pictures())
        return {
            "experiment": self.name,
            "classes": self.splits.classes,
            "train_images": len(self.splits.train_x) - self.validation,
            "validation_images": self.validation,
            "test_images": len(self.splits.test_x),
            "epochs": self.training.epochs,
            "noise": {"kind": self.noise_kind, "share": self.noise, "points": runs[0]["spoilt"]},
            "cross_validation": {
                "folds": self.folds,
                "epochs": self.fold_training.epochs,
                "lr": self.fold_training.lr,
            },
            "scores": {name: score.note for name, score in SCORES.items()},
            "found_by": UNSEEN,
            "methods": {name: _describe(treatment) for name, treatment in self.treatments.items()},
            "removal": describe(self.removal),
            "runs": runs,
            "summary": {name: medians([run["methods"][name] for run in runs]) for name in self.treatments},
            "score_summary": {name: medians([run["scores"][name] for run in runs]) for name in SCORES},
            "worst": pictures[0],
        }


class _SeedRun:
    """One seed of a study, from training to evaluation."""

    def __init__(self, study: RepairStudy, seed: int, folder: Path):
        self.study, self.seed, self.folder = study, seed, folder
        s = study.splits
        stays = len(s.train_x) - study.validation
        self.clean: Pair = (s.train_x[:stays], s.train_y[:stays])
        self.validation: Pair = (s.train_x[stays:], s.train_y[stays:])
        self.test: Pair = (s.test_x, s.test_y)
        self.samples, self.spoilt = self._spoil()

    def _spoil(self) -> tuple[Pair, Tensor]:
        """The training samples with noise, and a mask (N,) of those that are spoilt."""
        x, y = self.clean
        noise, seed = self.study.noise, self.seed
        if self.study.noise_kind == "labels":
            poison = noisy_labels(y, noise, classes=len(self.study.splits.classes), seed=seed)
            indices, samples = poison.indices, (x, poison.apply(y))
        else:
            noisy, indices = noisy_inputs(x, noise, seed=seed)
            samples = (noisy, y)
        spoilt = torch.zeros(len(y), dtype=torch.bool)
        spoilt[indices] = True
        return samples, spoilt

    def run(self) -> dict[str, Any]:
        """What result.json holds about the seed."""
        start = time.perf_counter()
        trained = {
            "clean": self._train(self.clean, "clean", self.seed),
            "noisy": self._train(self.samples, "noisy", self.seed),
        }
        clean, noisy = (model for model, _ in trained.values())
        self.accuracies = accuracy(noisy, self.test), accuracy(clean, self.test)
        self.failures = self._failures(noisy)
        begin = time.perf_counter()
        scores = self._identify(noisy)
        seconds = time.perf_counter() - begin
        methods = {name: self._treat(noisy, name, treatment) for name, treatment in self.study.treatments.items()}
        trained["retrained"] = self._train(self._without(self.found), "retrained", self.seed + 1000)
        return {
            "seed": self.seed,
            "spoilt": int(self.spoilt.sum()),
            "failures": len(self.failures[1]),
            **{name: {**self._measure(model), "seconds": seconds} for name, (model, seconds) in trained.items()},
            "scores": scores,
            "found": {**self._judge_found(), "seconds": seconds},
            "methods": methods,
            "curves": self._curves(noisy),
            "seconds": time.perf_counter() - start,
        }

    def pictures(self) -> list[dict[str, Any]]:
        """The worst samples: image (28, 28) in [0, 1], given, proposed and true label, and whether it is spoilt."""
        chosen = worst(self.scores[UNSEEN], SHOWN_IMAGES)
        images = self.samples[0][chosen].squeeze(1)
        low, high = self.clean[0].min(), self.clean[0].max()
        shown = ((images - low) / (high - low)).clamp(0, 1)
        classes = self.study.splits.classes
        return [
            {
                "image": [[round(v, 3) for v in row] for row in image.tolist()],
                "given": classes[int(self.samples[1][i])],
                "proposed": classes[int(self.suspects.unseen[i].argmax())],
                "true": classes[int(self.clean[1][i])],
                "spoilt": bool(self.spoilt[i]),
            }
            for i, image in zip(chosen.tolist(), shown, strict=True)
        ]

    def _train(self, data: Pair, name: str, seed: int) -> tuple[nn.Module, float]:
        study = self.study
        study.log(f"seed {self.seed}: training, {name} ({study.training.epochs} epochs, {len(data[0]):,} images)")
        file = self.folder / f"{name}.pt"
        return train(
            study.network, study.training, data, seed=seed, device=study.device, progress=study.progress, file=file
        )

    def _failures(self, model: nn.Module) -> Pair:
        x, y = self.validation
        wrong = predict(model, self.validation).cpu() != y
        if not wrong.any():
            raise ValueError(
                f"validation: the noisy model gets all {len(y)} samples right, so there is nothing to repair"
            )
        return x[wrong], y[wrong]

    def _identify(self, model: nn.Module) -> dict[str, Any]:
        study = self.study
        self.suspects = Suspects(
            model,
            study.network,
            study.fold_training,
            self.samples,
            self.validation,
            self.failures,
            folds=study.folds,
            seed=self.seed,
            progress=study.progress,
            device=study.device,
        )
        self.scores: dict[str, Tensor] = {}
        results = {}
        for name, score in SCORES.items():
            self.scores[name], seconds = scored(self.suspects, score)
            results[name] = {**judged(self.scores[name], self.spoilt), "seconds": seconds}
            study.log(f"seed {self.seed}, {name}: AUROC {results[name]['auroc']:.4f} after {seconds:.1f} s")
        number = int(doubted(self.suspects.unseen, self.samples[1]).sum())
        if not number:
            raise ValueError("noise: cross-validation doubts none of the labels, so there is nothing to repair")
        self.found = worst(self.scores[UNSEEN], number)
        hits = int(self.spoilt[self.found].sum())
        study.log(f"seed {self.seed}: found {number} samples, {hits} of the {int(self.spoilt.sum())} spoilt")
        return results

    def _treat(self, model: nn.Module, name: str, treatment: Treatment) -> dict[str, Any]:
        x, y = self.samples
        if treatment.relabels:
            labels = y.clone()
            labels[self.found] = self.suspects.unseen[self.found].argmax(1)
            request = Request.correct((x, y), (x, labels))
        else:
            request = Request.remove((x, y), self.found)
        method = replace(treatment.method, seed=self.seed, progress=self.study.progress)
        outcome = method(model, request)
        save_model(outcome.model, self.folder / f"{slug(name)}.pt")
        result = {
            **self._measure(outcome.model),
            **describe_outcome(outcome),
        }
        note = "" if outcome.applied else f", not applied: {outcome.reason}"
        self.study.log(
            f"seed {self.seed}, {name}: {100 * result['accuracy']:.2f} % after {outcome.seconds:.1f} s{note}"
        )
        return result

    def _measure(self, model: nn.Module) -> dict[str, Any]:
        found, (before, clean) = accuracy(model, self.test), self.accuracies
        return {
            "accuracy": found,
            "failure_accuracy": accuracy(model, self.failures),
            "recovered": (found - before) / (clean - before) if clean > before else None,
        }

    def _judge_found(self) -> dict[str, Any]:
        """How well spoilt samples were found, and the share of those found with a wrong label and a right proposal."""
        hit = self.spoilt[self.found].double()
        right = self.suspects.unseen[self.found].argmax(1) == self.clean[1][self.found]
        n = max(1, len(hit))
        return {
            "points": len(hit),
            "precision": hit.sum().item() / n,
            "recall": hit.sum().item() / int(self.spoilt.sum()),
            "right_labels": (hit * right).sum().item() / n,
        }

    def _without(self, gone: Tensor) -> Pair:
        stays = left_of(len(self.spoilt), gone)
        return self.samples[0][stays], self.samples[1][stays]

    def _curves(self, model: nn.Module) -> dict[str, list[dict[str, Any]]]:
        """Test accuracy after further training without the worst samples, by several scores and at random."""
        drawn = torch.rand(len(self.spoilt), generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        orders = {**{name: self.scores[name] for name in self.study.curves}, RANDOM_ORDER: drawn}
        curves: dict[str, list[dict[str, Any]]] = {}
        numbers = [round(share * int(self.spoilt.sum())) for share in REMOVED_SHARES]
        method = replace(self.study.removal, seed=self.seed, progress=self.study.progress)
        for name, order in orders.items():
            self.study.log(f"seed {self.seed}: removing samples, {name}")
            curves[name] = []
            for k in (k for k in numbers if 0 < k < len(self.spoilt)):
                outcome = method(model, Request.remove(self.samples, worst(order, k)))
                curves[name].append({"points": k, "accuracy": accuracy(outcome.model, self.test)})
        return curves


def _describe(treatment: Treatment) -> str:
    return describe(treatment.method) + (" with proposed labels" if treatment.relabels else "")


def repair_mnist(
    root: Path,
    *,
    noise: Annotated[float, "share of the training samples to spoil"] = 0.2,
    noise_kind: Annotated[str, "what to spoil: labels or inputs"] = "labels",
    epochs: Epochs = None,
    preset: Preset = "default",
    progress: bool = True,
) -> RepairStudy:
    """10,000 digits of MNIST, a share of the training samples with wrong labels or with noise in their pixels.

    Args:
        root: see :func:`unlearnx.data.load_mnist`.
        noise: share of the training samples to spoil.
        noise_kind: ``"labels"`` or ``"inputs"``.
        epochs: of every training but those of the cross-validation; 20 where not given.
        preset: ``"default"`` is the only one.
        progress: show progress bars.

    Raises:
        ValueError: there is no such preset, or the noise does not fit.
        FileNotFoundError: the data are missing.
    """
    check_preset("repair-mnist", preset)
    # Weight decay removes what was memorised from the weights; without it, further training hardly changes them.
    tune = FineTune(epochs=5, lr=5e-3, batch_size=128, weight_decay=1.0)
    newton, ewc = NewtonRepair(params="last:4"), EWCRepair(epochs=10)
    treatments = {
        "fine-tuning": Treatment(tune),
        "relabelling": Treatment(tune, relabels=True),
        "Newton repair": Treatment(newton),
        "EWC repair": Treatment(ewc),
        "EWC repair, fine-tuning": Treatment(Pipeline([ewc, tune])),
        "EWC repair, energy alignment": Treatment(Pipeline([ewc, EnergyAlignment(epochs=2)])),
    }
    training = Training(20 if epochs is None else epochs, lr=2e-3)
    return RepairStudy(
        "repair-mnist",
        load_mnist(root),
        mnist_cnn,
        training,
        treatments,
        noise=noise,
        noise_kind=noise_kind,
        removal=replace(tune, epochs=2),
        progress=progress,
    )


REPAIR_MNIST = Study(
    *("repair-mnist", repair_mnist, report.page, report.table),
    needs=Data("the folder with mnist-10k.npz"),
)
