"""Label poisoning: how much of the lost accuracy does each method restore, and at what share of the cost?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset

from unlearnx._checks import check_at_least_one
from unlearnx._data import size
from unlearnx._sources import Changed
from unlearnx.curvature import LiSSA
from unlearnx.data import Poison, Splits, flip_labels, load_cifar10, load_digits
from unlearnx.experiments.comparison import medians
from unlearnx.experiments.outcomes import describe_outcome
from unlearnx.experiments.report import poison as report
from unlearnx.experiments.runs import (
    default_device,
    describe,
    estimated_seconds,
    loaded,
    room_for,
    save_model,
    slug,
    train,
)
from unlearnx.experiments.study import CIFAR10, Epochs, Limit, Prepared, Preset, Study, check_preset
from unlearnx.methods import SSD, FineTune, FirstOrder, Method, Request, SecondOrder
from unlearnx.metrics import ClassReport, confusion_matrix
from unlearnx.models import Training, digits_cnn, fast_dtype, vgg_cifar10

SUMMARISED = ("accuracy", "restored", "seconds", "total_seconds", "gradient_evaluations", "speedup")
TIMED_STEPS = 20  # of training, from which the time of retraining is estimated where checkpoints are given


@dataclass(frozen=True)
class Treatment:
    """A method as the study runs it.

    Attributes:
        method: the method.
        mirrored: whether the method is given each image and its mirror image.
    """

    method: Method
    mirrored: bool = False


@dataclass(frozen=True)
class Checkpoints:
    """Files of trained models to start from, and of the poison that the second was trained with."""

    clean: Path
    poisoned: Path
    poison: Path

    @classmethod
    def find(cls, clean: Path, poisoned: Path, poison: Path | None) -> Checkpoints:
        """The given files. If `poison` is None, it is looked for beside the poisoned model.

        Raises:
            FileNotFoundError: a file is missing, or not exactly one ``*poison*.npz`` lies beside the model.
        """
        if poison is None:
            found = sorted(poisoned.parent.glob("*poison*.npz"))
            if len(found) != 1:
                raise FileNotFoundError(
                    f"{poisoned.parent}: holds {len(found)} files *poison*.npz, expected one; name it with --poison"
                )
            poison = found[0]
        for file in (clean, poisoned, poison):
            if not file.is_file():
                raise FileNotFoundError(f"{file}: no such file")
        return cls(clean, poisoned, poison)


@dataclass
class PoisonStudy(Prepared):
    """One poisoning study: data, network, training and the methods to compare.

    Attributes:
        name: of the experiment.
        splits: the data.
        network: builds an untrained model.
        training: how the clean, the poisoned and the retrained model are trained.
        budget: number of labels to flip.
        treatments: the methods, by their names in the report.
        checkpoints: trained models to start from; the time of retraining is then estimated from a few steps.
        device: where networks are trained and unlearn.
    """

    name: str
    splits: Splits
    network: Callable[[], nn.Module]
    training: Training
    budget: int
    treatments: dict[str, Treatment]
    checkpoints: Checkpoints | None = None
    device: torch.device = field(default_factory=default_device)

    def __post_init__(self) -> None:
        check_at_least_one(budget=self.budget)
        if self.checkpoints is None:
            self._flipped(0)  # raises where a class has too few labels

    def room(self, seeds: int) -> int:
        """Bytes that a run of so many seeds writes at most."""
        return room_for(seeds * (2 + len(self.treatments)), self.network)

    def run(self, seeds: list[int], folder: Path) -> dict[str, Any]:
        """Run the study for each seed and save the models under `folder`; returns the content of result.json."""
        runs = [self._run_seed(seed, folder / f"seed-{seed}") for seed in seeds]
        return {
            "experiment": self.name,
            "classes": self.splits.classes,
            "train_images": len(self.splits.train_x),
            "test_images": len(self.splits.test_x),
            "flipped_labels": self.budget,
            "epochs": self.training.epochs,
            "retraining": "estimated" if self.checkpoints else "measured",
            "timed_steps": TIMED_STEPS,
            "methods": {name: _describe(treatment) for name, treatment in self.treatments.items()},
            "runs": runs,
            "summary": {name: _summarised([run["methods"][name] for run in runs]) for name in self.treatments},
        }

    def _run_seed(self, seed: int, folder: Path) -> dict[str, Any]:
        s = self.splits
        estimates = [self._estimated_seconds()] if self.checkpoints else []
        poison, clean, poisoned = self._start(seed, folder)
        poison.save(folder / "poison.npz")
        before = {"clean": self._evaluate(clean), "poisoned": self._evaluate(poisoned)}
        request = Request.correct((s.train_x, poison.apply(s.train_y)), (s.train_x, s.train_y))
        methods = {
            name: self._treated(name, treatment, poisoned, request, seed) for name, treatment in self.treatments.items()
        }
        if self.checkpoints:  # estimated before and after the methods; the faster one counts
            seconds = min(*estimates, self._estimated_seconds())
            retraining = {"accuracy": before["clean"]["accuracy"], "seconds": seconds}
        else:
            retrained, seconds = self._train(s.train_y, seed + 1000, None, "retraining")
            retraining = {"accuracy": self._evaluate(retrained)["accuracy"], "seconds": seconds}
        lost = before["clean"]["accuracy"] - before["poisoned"]["accuracy"]
        for name, result in methods.items():
            model = result.pop("model")
            save_model(model, folder / f"{slug(name)}.pt")
            result.update(self._evaluate(model))
            result["restored"] = (result["accuracy"] - before["poisoned"]["accuracy"]) / lost if lost else None
            result["speedup"] = seconds / result["total_seconds"]
            self.log(f"{name}: {100 * result['accuracy']:.2f} % after {result['total_seconds']:.1f} s")
        return {"seed": seed, **before, "methods": methods, "retrained": retraining}

    def _treated(
        self, name: str, treatment: Treatment, model: nn.Module, request: Request, seed: int
    ) -> dict[str, Any]:
        self.log(f"unlearning: {name}")
        method = replace(treatment.method, seed=seed, progress=self.progress)
        outcome = method(model, _mirrored(request) if treatment.mirrored else request)
        return {"model": outcome.model, **describe_outcome(outcome), "total_seconds": outcome.seconds}

    def _start(self, seed: int, folder: Path) -> tuple[Poison, nn.Module, nn.Module]:
        """The poison, the clean and the poisoned model, loaded or trained."""
        if self.checkpoints:
            clean, poisoned = (
                loaded(self.network, file, device=self.device)
                for file in (self.checkpoints.clean, self.checkpoints.poisoned)
            )
            return Poison.load(self.checkpoints.poison), clean, poisoned
        labels = self.splits.train_y
        poison = self._flipped(seed)
        clean, _ = self._train(labels, seed, folder / "clean.pt", "training on clean labels")
        poisoned, _ = self._train(poison.apply(labels), seed, folder / "poisoned.pt", "training on poisoned labels")
        return poison, clean, poisoned

    def _flipped(self, seed: int) -> Poison:
        return flip_labels(self.splits.train_y, self.budget, classes=len(self.splits.classes), seed=42 + seed)

    def _train(self, labels: Tensor, seed: int, file: Path | None, title: str) -> tuple[nn.Module, float]:
        self.log(f"{title} ({self.training.epochs} epochs, {len(labels)} images)")
        data = (self.splits.train_x, labels)
        return train(
            self.network, self.training, data, seed=seed, device=self.device, progress=self.progress, file=file
        )

    def _estimated_seconds(self) -> float:
        """Seconds of the whole training, estimated from a few steps."""
        data = (self.splits.train_x, self.splits.train_y)
        return estimated_seconds(self.network, self.training, data, steps=TIMED_STEPS, device=self.device)

    def _evaluate(self, model: nn.Module) -> dict[str, Any]:
        data = (self.splits.test_x, self.splits.test_y)
        matrix = confusion_matrix(
            model, data, classes=len(self.splits.classes), batch_size=64, autocast=self.training.autocast
        )
        report = ClassReport.from_confusion(matrix)
        return {
            "accuracy": matrix.diagonal().sum().item() / matrix.sum().item(),
            "confusion": matrix.tolist(),
            "precision": report.precision.tolist(),
            "recall": report.recall.tolist(),
            "f1": report.f1.tolist(),
        }


def _mirrored(request: Request) -> Request:
    """The same request on all images and their mirror images, which come after them."""
    dataset, corrected = (_and_mirrored(data) for data in (request.dataset, request.target))
    forget = torch.cat([request.forget, request.forget + size(request.dataset)])
    return Request(dataset, forget, corrected, request.labels_only)


def _and_mirrored(data: Dataset[Any]) -> Dataset[Any]:
    return ConcatDataset([data, Changed(data, lambda x, y, _: (x.flip(-1), y))])


def _describe(treatment: Treatment) -> str:
    return describe(treatment.method) + (" on images and mirror images" if treatment.mirrored else "")


def _summarised(entries: list[dict[str, Any]]) -> dict[str, float]:
    """Medians; where no accuracy was lost, none was restored."""
    return medians([{**entry, "restored": entry["restored"] or 0.0} for entry in entries], SUMMARISED)


def poison_digits(*, epochs: Epochs = None, preset: Preset = "default", progress: bool = True) -> PoisonStudy:
    """The embedded digits with 20 % of their labels flipped.

    Raises:
        ValueError: there is no such preset.
    """
    check_preset("poison-digits", preset)
    splits = load_digits()
    treatments = {
        "SSD": Treatment(SSD(alpha=10.0)),
        "first order": Treatment(FirstOrder(params="last:4")),
        "second order": Treatment(SecondOrder(params="last:4")),
        "fine-tuning": Treatment(FineTune(epochs=5, lr=2e-3, batch_size=128, params="last:4")),
        "fine-tuning, last block": Treatment(FineTune(epochs=5, lr=3e-3, params="last:8")),
    }
    training = Training(60 if epochs is None else epochs, lr=2e-3)
    return PoisonStudy(
        "poison-digits", splits, digits_cnn, training, len(splits.train_y) // 5, treatments, progress=progress
    )


def poison_cifar(
    root: Path,
    *,
    limit: Limit = None,
    epochs: Epochs = None,
    budget: Annotated[int | None, "labels to flip"] = None,
    preset: Preset = "default",
    clean: Annotated[Path | None, "checkpoint trained on clean labels"] = None,
    poisoned: Annotated[Path | None, "checkpoint trained on poisoned labels"] = None,
    poison: Annotated[Path | None, "wrong labels of --poisoned (.npz); looked for beside it"] = None,
    progress: bool = True,
) -> PoisonStudy:
    """CIFAR-10 with flipped labels (a fifth of them, 10,000 of all 50,000), and the VGG of the published study.

    Args:
        root: folder or archive of CIFAR-10, see :func:`unlearnx.data.load_cifar10`.
        limit: number of training images to use; all where not given.
        epochs: of each training; 14 where not given.
        budget: number of labels to flip; a fifth of the training images where not given.
        preset: ``"default"`` compares the methods with their default arguments on the last six tensors,
            ``"reference"`` follows the published protocol, ``"best"`` is the best recipe known here.
        clean, poisoned: files of trained models to start from; both or neither.
        poison: file of the labels that `poisoned` was trained with; looked for beside it where not given.
        progress: show progress bars.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there is no such preset, or the files do not belong together.
    """
    checkpoints = _checkpoints(clean, poisoned, poison, budget)
    splits = load_cifar10(root, limit=limit)
    n = len(splits.train_x)
    presets: dict[str, dict[str, Treatment]] = {
        "default": {
            "SSD": Treatment(SSD(alpha=10.0, params="last:6")),
            "first order": Treatment(FirstOrder(params="last:6")),
            "second order": Treatment(SecondOrder(params="last:6")),
            "fine-tuning": Treatment(FineTune(epochs=3, params="last:6")),
            "fine-tuning, last block": Treatment(FineTune(epochs=3, lr=2e-3, params="last:14")),
        },
        # The publication uses sums over a batch, this package means over the data: hence the quotients.
        "reference": {
            "first order": Treatment(FirstOrder(2e-5, steps=10, points_per_step=512, params="last:6")),
            "second order": Treatment(
                SecondOrder(
                    LiSSA(damping=1e-4, scale=2e5 / 1024, batch_size=1024, patience=20),
                    kind="hessian",
                    steps=10,
                    step=n / 1024,
                    points_per_step=1024,
                    curvature_samples=None,
                    params="last:6",
                )
            ),
        },
        "best": {
            "fine-tuning, last block, mirrored": Treatment(
                FineTune(epochs=2, lr=2e-3, weight_decay=1e-2, params="last:14"),
                mirrored=True,
            ),
        },
    }
    if preset not in presets:
        raise ValueError(f"preset is {preset!r}, expected one of {', '.join(presets)}")
    training = Training(14 if epochs is None else epochs, lr=2e-3, autocast=fast_dtype(default_device()))
    return PoisonStudy(
        "poison-cifar",
        splits,
        vgg_cifar10,
        training,
        n // 5 if budget is None else budget,
        presets[preset],
        checkpoints,
        progress=progress,
    )


def _checkpoints(
    clean: Path | None, poisoned: Path | None, poison: Path | None, budget: int | None
) -> Checkpoints | None:
    if (clean is None) != (poisoned is None):
        raise ValueError(
            f"{'--clean' if clean else '--poisoned'} is given alone, expected both --clean and --poisoned, or neither"
        )
    if poison is not None and poisoned is None:
        raise ValueError("--poison is given alone, expected --clean and --poisoned too, the models it belongs to")
    if poisoned is not None and budget is not None:
        raise ValueError("--budget is given with --poisoned, whose labels are flipped already, expected one of them")
    return Checkpoints.find(clean, poisoned, poison) if clean and poisoned else None


POISON_DIGITS = Study("poison-digits", poison_digits, report.page, report.table, seeds=3)
POISON_CIFAR = Study("poison-cifar", poison_cifar, report.page, report.table, needs=CIFAR10)
