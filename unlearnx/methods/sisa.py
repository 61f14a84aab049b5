"""SISA: an ensemble that forgets exactly, by retraining only the models that were trained on the forget set."""

from __future__ import annotations

import hashlib
import json
import pickle
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnx import _distributed as distributed
from unlearnx._arguments import check_fields, checked
from unlearnx._checks import check_at_least_one, model_device
from unlearnx._data import Data
from unlearnx._files import write_atomically
from unlearnx._losses import Loss
from unlearnx._progress import progress_bar
from unlearnx._sources import Samples
from unlearnx.methods.request import Request
from unlearnx.methods.shards import (
    Factory,
    Job,
    Shard,
    build,
    derived_seed,
    digests,
    divide,
    epochs_per_slice,
    load,
    run_all,
)
from unlearnx.metrics.outputs import each_batch, log_probabilities
from unlearnx.models.training import Training

Aggregate = Literal["vote", "mean"]

FOLDER_FORMAT = 1
STATE_FILE = "sisa.json"
PREDICTION_BATCH_SIZE = 256


@dataclass(frozen=True)
class SISACost:
    """The cost of a removal.

    Attributes:
        retrained_slices: the slices to retrain, as (shard, slice).
        samples: samples visited in retraining, summed over epochs.
        full_samples: samples visited in training everything anew, summed over epochs.

    Example:
        >>> SISACost(retrained_slices=((0, 1), (0, 2)), samples=20, full_samples=200).share
        0.1
    """

    retrained_slices: tuple[tuple[int, int], ...]
    samples: int
    full_samples: int

    @property
    def share(self) -> float:
        """``samples / full_samples``."""
        return self.samples / self.full_samples


@dataclass(frozen=True)
class SISAOutcome(SISACost):
    """The cost of a completed :meth:`SISA.fit` or :meth:`SISA.remove`.

    Attributes:
        seconds: wall-clock time of the call.

    Example:
        >>> SISAOutcome(retrained_slices=((0, 1),), samples=10, full_samples=200, seconds=0.2).share
        0.05
    """

    seconds: float


@dataclass(frozen=True)
class _Fitted:
    """The data, the removed samples, and the assignment of the others to shards."""

    x: Tensor
    y: Tensor
    hashes: list[bytes]
    removed: frozenset[int]
    shards: list[Shard]

    @property
    def checksum(self) -> str:
        """Checksum of the remaining samples in their order; the content of removed samples does not matter."""
        retained = (content for i, content in enumerate(self.hashes) if i not in self.removed)
        return hashlib.blake2b(b"".join(retained), digest_size=16).hexdigest()


@dataclass
class SISA:
    """Sharded, isolated, sliced and aggregated training.

    The samples are divided into shards. Each shard trains one model of an ensemble, its constituent, slice after slice,
    and saves a checkpoint after each slice. Removing a sample retrains its shard from the sample's slice on. The result
    equals training without the sample, bit for bit: ``fit(data)`` and ``remove([i])`` give the same files as ``fit`` on
    data without sample i, on the same kind of device with the same number of threads.

    Other methods are called as ``method(model, request)``. SISA is not, because it works only for an ensemble that it
    has trained itself.

    The process may be killed at any time. A removal is recorded in the folder before anything else is done. Names of
    checkpoints contain a hash of the samples that they were trained on, so that checkpoints of removed samples are
    recognised, and they are deleted before retraining begins. :meth:`open` trains whatever is missing. Only one program
    may use a folder at a time.

    Each slice is trained with a new optimizer and its own learning rate schedule. (The published code keeps the
    optimizer from slice to slice but does not save it, so that its retraining differs from training from scratch.) The
    batch size grows a little if the last batch would be a single sample, and shards of fewer than two samples have no
    constituent. Constituents are trained on few samples: accuracy falls as the number of shards grows.

    Under ``torchrun`` the shards to train are divided among the processes, which must make the same calls and have
    access to the same folder.

    Args:
        factory: builds an untrained model that maps x to class scores (N, classes).
        folder: folder of the checkpoints.
        shards: number of shards.
        slices: number of slices of each shard.
        aggregate: ``"vote"`` predicts the class that most constituents predict, ``"mean"`` the class with the largest
            mean probability.
        training: training settings of every constituent. Its epochs are passes over a whole shard, for any number of
            slices; its seed is not used.
        seed: seed of the assignment to shards, of the initial parameters and of the order of samples.
        workers: number of processes that train shards. If more than 1, `factory` and the loss must be importable, and a
            script needs ``if __name__ == "__main__":``.
        device: device to train and predict on; None for the one that the factory puts models on.
        progress: show a progress bar (needs ``unlearnx[experiments]``).

    Raises:
        ValueError: an argument is out of range, or the factory does not return a new module at every call.

    Source: Bourtoule et al., "Machine Unlearning", S&P 2021.

    Example:
        >>> x, y, build = torch.randn(60, 8), torch.arange(60) % 3, partial(nn.Linear, 8, 3)
        >>> sisa = SISA(build, folder, shards=3, slices=2, training=Training(2))
        >>> whole = sisa.fit((x, y))
        >>> sisa.remove([17]).share < 0.5
        True
        >>> SISA.open(folder, build, (x, y)).removed
        [17]
    """

    factory: Factory
    folder: str | Path
    shards: int = 10
    slices: int = 5
    aggregate: Aggregate = "vote"
    training: Training = field(default_factory=lambda: Training(30, lr=5e-3, batch_size=32))
    seed: int = 0
    workers: int = 1
    device: torch.device | str | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least_one(shards=self.shards, slices=self.slices, workers=self.workers)
        if self.aggregate not in get_args(Aggregate):
            raise ValueError(f"aggregate is {self.aggregate!r}, expected one of {', '.join(get_args(Aggregate))}")
        if self.workers > 1:
            _check_importable(factory=self.factory, loss_fn=self.training.loss_fn)
        model = self._untrained(0)
        if model is self._untrained(0):
            raise ValueError("factory: returned the same model twice, expected a new one at every call")
        self._architecture, self._device = _architecture(model), model_device(model)
        self._fitted: _Fitted | None = None
        self._constituents: dict[str, nn.Module] = {}

    @classmethod
    def open(
        cls,
        folder: str | Path,
        factory: Factory,
        data: Data,
        *,
        loss_fn: Loss = F.cross_entropy,
        workers: int = 1,
        device: torch.device | str | None = None,
        progress: bool = False,
    ) -> SISA:
        """Load an ensemble from its folder, and finish training that was interrupted.

        Args:
            folder: the folder of the ensemble.
            factory: the same factory as for :meth:`fit`.
            data: the same data as for :meth:`fit`; removed samples are not read, and may have been overwritten.
            loss_fn: the same loss as for :meth:`fit`.
            workers, device, progress: see :class:`SISA`; they may differ from those of :meth:`fit`.

        Raises:
            FileNotFoundError: the folder holds no ensemble.
            ValueError: the factory, the data or the loss differ from those of :meth:`fit`.
        """
        state = _read(Path(folder) / STATE_FILE)
        recipe = state["recipe"]
        training = dict(recipe["training"])
        if training["autocast"] is not None:
            training["autocast"] = getattr(torch, training["autocast"])
        sisa = cls(
            factory,
            folder,
            recipe["shards"],
            recipe["slices"],
            state["aggregate"],
            Training(**training, loss_fn=loss_fn),
            recipe["seed"],
            workers,
            device,
            progress,
        )
        with distributed.failing_together(sisa._device):
            sisa._check_recipe(recipe)
            x, y = _tensors(data)
            if len(x) != state["points"]:
                raise ValueError(f"data: has {len(x)} samples, expected the {state['points']} of {folder}")
            fitted = sisa._divided(x, y, digests(x, y), frozenset(state["removed"]))
            if fitted.checksum != state["checksum"]:
                raise ValueError(
                    f"data: the samples that were not removed, or their order, differ from those of {folder}"
                )
        sisa._fitted = fitted
        sisa._finish()
        return sisa

    @checked
    def fit(self, data: Data) -> SISAOutcome:
        """Train all constituents.

        Args:
            data: pairs (x, y); held in memory as tensors.

        Raises:
            FileExistsError: the folder holds an ensemble already.
            ValueError: there are fewer samples than shards * slices.
            FloatingPointError: the loss of an epoch is not finite.
        """
        start = time.perf_counter()
        with self._first_process_only() as first:
            if first and self._file.exists():
                raise FileExistsError(f"{self._file.parent} holds an ensemble already; load it by SISA.open")
            x, y = _tensors(data)
            if len(x) < self.shards * self.slices:
                raise ValueError(
                    f"data: has {len(x)} samples, expected at least shards * slices = {self.shards} * {self.slices}"
                )
            fitted = self._divided(x, y, digests(x, y), frozenset())
        self._commit(fitted)
        return self._outcome(self._finish(), start)

    @checked
    def remove(self, indices: Sequence[int] | Tensor) -> SISAOutcome:
        """Forget samples, and retrain the slices that were trained on them.

        Args:
            indices: indices of the samples in the data of :meth:`fit`.

        Raises:
            ValueError: no indices, some out of range, given twice or removed before, or too few samples would be left.
            RuntimeError: :meth:`fit` was not called, or another program has changed the folder.
            FloatingPointError: the loss of an epoch is not finite; the samples are removed, but predictions raise until
                :meth:`open` has trained what is missing.
        """
        start = time.perf_counter()
        with self._first_process_only() as first:
            after = self._without(indices)
            if first and frozenset(_read(self._file)["removed"]) != self._fitted_data.removed:
                raise RuntimeError(
                    f"{self._file}: another program has removed samples; load the folder again by SISA.open"
                )
        self._commit(after)
        return self._outcome(self._finish(), start)

    @checked
    def cost(self, indices: Sequence[int] | Tensor) -> SISACost:
        """The cost of :meth:`remove` for these indices; raises the same errors."""
        before, after = self._fitted_data.shards, self._without(indices).shards
        return self._cost(
            [(s, r) for s in range(self.shards) for r in range(self.slices) if before[s].keys[r] != after[s].keys[r]],
            after,
        )

    @property
    def removed(self) -> list[int]:
        """Indices of the samples removed so far, ascending."""
        return sorted(self._fitted_data.removed)

    @checked
    def predict(self, x: Tensor) -> Tensor:
        """Class of each sample in `x`, int64 (N,), on the CPU.

        Ties between votes are broken by the mean probability.

        Raises:
            ValueError: `x` has another shape than the data, or a constituent returns no finite class scores.
            RuntimeError: the ensemble is not trained.
        """
        return self._aggregate_outputs(x)[1].argmax(1)

    @checked
    def probabilities(self, x: Tensor) -> Tensor:
        """Mean probabilities of the classes, or fractions of the votes, float64 (N, classes), on the CPU.

        Raises:
            ValueError, RuntimeError: as :meth:`predict`.
        """
        return self._aggregate_outputs(x)[0]

    @property
    def _file(self) -> Path:
        return Path(self.folder) / STATE_FILE

    @property
    def _fitted_data(self) -> _Fitted:
        if self._fitted is None:
            raise RuntimeError("SISA has no data yet; call fit(), or SISA.open() for a folder of a fitted ensemble")
        return self._fitted

    def _untrained(self, shard: int) -> nn.Module:
        return build(self.factory, derived_seed(self.seed, shard, "start"), self.device)

    def _checkpoint(self, shard: int, key: str, r: int) -> Path:
        return Path(self.folder) / f"shard-{shard}" / f"slice-{r}.{key}.pt"

    @property
    def _recipe(self) -> dict[str, Any]:
        """Everything that a checkpoint depends on, except for the data."""
        kept = {k: v for k, v in vars(self.training).items() if k not in ("loss_fn", "seed", "progress")}
        autocast = self.training.autocast
        kept["autocast"] = None if autocast is None else str(autocast).removeprefix("torch.")
        return {
            "shards": self.shards,
            "slices": self.slices,
            "seed": self.seed,
            "training": kept,
            "loss": _name(self.training.loss_fn),
            "architecture": self._architecture,
        }

    def _check_recipe(self, recipe: dict[str, Any]) -> None:
        if self._architecture != recipe["architecture"]:
            own, other = self._architecture, recipe["architecture"]
            part = next(p for p in [*other, *own] if own.get(p) != other.get(p))
            raise ValueError(
                f"factory: its model has {own.get(part, 'nothing')} as {part!r}, but {self.folder} was fitted "
                f"with {other.get(part, 'nothing')}"
            )
        if _name(self.training.loss_fn) != recipe["loss"]:
            raise ValueError(
                f"loss_fn: is {_name(self.training.loss_fn)}, but {self.folder} was fitted with {recipe['loss']}"
            )

    def _divided(self, x: Tensor, y: Tensor, hashes: list[bytes], removed: frozenset[int]) -> _Fitted:
        retained = (i for i in range(len(hashes)) if i not in removed)
        recipe = json.dumps(self._recipe, sort_keys=True)
        shards = divide(hashes, retained, self.shards, self.slices, seed=self.seed, recipe=recipe)
        return _Fitted(x, y, hashes, removed, shards)

    def _without(self, indices: Sequence[int] | Tensor) -> _Fitted:
        now = self._fitted_data
        indices_to_remove = Request.remove((now.x, now.y), indices).forget.tolist()
        removed_before = now.removed.intersection(indices_to_remove)
        if removed_before:
            raise ValueError(f"indices: sample {min(removed_before)} was removed before")
        after = self._divided(now.x, now.y, now.hashes, now.removed.union(indices_to_remove))
        if not any(shard.can_train for shard in after.shards):
            raise ValueError("indices: leaves no shard with at least two samples, expected at least one such shard")
        return after

    @contextmanager
    def _first_process_only(self) -> Iterator[bool]:
        """Whether this process is to do the work; the others wait for it, and raise if it raises."""
        with distributed.failing_together(self._device):
            yield distributed.is_first()

    def _commit(self, fitted: _Fitted) -> None:
        """Record the data and the removed samples in the folder; its checkpoints are outdated until :meth:`_finish`."""
        state = {
            "format": FOLDER_FORMAT,
            "recipe": self._recipe,
            "aggregate": self.aggregate,
            "points": len(fitted.hashes),
            "removed": sorted(fitted.removed),
            "checksum": fitted.checksum,
        }
        text = json.dumps(state, indent=1).encode()
        with distributed.failing_together(self._device):
            own = torch.tensor(derived_seed(text.hex()), device=self._device)
            if distributed.broadcast_(own.clone()) != own:
                raise ValueError("indices or data: differ between the processes, expected the same in all of them")
        with self._first_process_only() as first:
            if first:
                write_atomically(self._file, lambda file: file.write(text))
        self._fitted = fitted
        current = {shard.keys[-1] for shard in fitted.shards}
        self._constituents = {key: model for key, model in self._constituents.items() if key in current}

    def _finish(self) -> list[tuple[int, int]]:
        """Delete outdated checkpoints and train the missing ones; returns the slices that were trained."""
        fitted = self._fitted_data
        names = [
            [self._checkpoint(s, key, r) for r, key in enumerate(shard.keys)] for s, shard in enumerate(fitted.shards)
        ]
        with self._first_process_only() as first:
            if first:
                self._delete_outdated({file for files in names for file in files})
            # Found before any process trains, so that all processes find the same checkpoints missing.
            jobs = [job for s, files in enumerate(names) if (job := self._job(s, files)) is not None]
        own = list(distributed.round_robin(jobs))
        with (
            distributed.failing_together(self._device),
            progress_bar("training slices", sum(len(job.slices) for job in own), self.progress) as advance,
        ):
            run_all(own, self.workers, lambda job: advance(len(job.slices)))
        return [trained for job in jobs for trained in job.slices]

    def _delete_outdated(self, current: set[Path]) -> None:
        """Delete checkpoints that are not `current`, and incomplete files of a program that was killed."""
        folder = Path(self.folder)
        for file in [
            *folder.glob("shard-*/slice-*"),
            *folder.glob("shard-*/.slice-*"),
            *folder.glob(f".{STATE_FILE}.*"),
        ]:
            if file not in current:
                file.unlink()

    def _job(self, s: int, files: list[Path]) -> Job | None:
        """The training that shard `s` needs; None if its checkpoints are complete."""
        first = next((r for r, file in enumerate(files) if not file.exists()), None)
        if first is None:
            return None
        fitted = self._fitted_data
        shard = fitted.shards[s]
        x, y = (t[shard.indices].cpu() for t in (fitted.x, fitted.y))
        return Job(self.factory, self.training, self.device, self.seed, s, first, files, shard.stops, x, y)

    def _cost(self, slices: list[tuple[int, int]], shards: list[Shard]) -> SISACost:
        epochs = epochs_per_slice(self.training.epochs, self.slices)
        visits = [[n * e for n, e in zip(shard.stops, epochs, strict=True)] for shard in shards]
        return SISACost(tuple(slices), sum(visits[s][r] for s, r in slices), sum(map(sum, visits)))

    def _outcome(self, slices: list[tuple[int, int]], start: float) -> SISAOutcome:
        cost = self._cost(slices, self._fitted_data.shards)
        return SISAOutcome(**vars(cost), seconds=time.perf_counter() - start)

    def _ensemble(self) -> list[nn.Module]:
        models = []
        for s, shard in enumerate(self._fitted_data.shards):
            key = shard.keys[-1]
            if not shard.can_train:
                continue
            if key not in self._constituents:
                file = self._checkpoint(s, key, self.slices - 1)
                if not file.exists():
                    raise RuntimeError(
                        f"shard {s} is not trained, because training was interrupted; SISA.open finishes it"
                    )
                model = self._untrained(s)
                load(model, file)
                self._constituents[key] = model.eval()
            models.append(self._constituents[key])
        return models

    def _aggregate_outputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities of the classes, and scores that break ties between votes, (N, classes) each."""
        shape = self._fitted_data.x.shape[1:]
        if not isinstance(x, Tensor) or x.shape[1:] != shape or x.dim() == 0:
            got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x: is {got}, expected a tensor of shape (N, {', '.join(map(str, shape))})")
        models = self._ensemble()

        def aggregate(*outputs: Tensor) -> tuple[Tensor, Tensor]:
            each = torch.stack([log_probabilities(output).exp() for output in outputs[:-1]])
            mean = each.mean(0)
            if self.aggregate == "mean":
                return mean.cpu(), mean.cpu()
            votes = F.one_hot(each.argmax(2), each.shape[2]).double().mean(0)
            return votes.cpu(), (votes + mean / (2 * len(each))).cpu()  # breaks ties: adds less than half a vote

        probabilities, scores = zip(*each_batch(models, (x, x), PREDICTION_BATCH_SIZE, None, aggregate), strict=True)
        return torch.cat(probabilities), torch.cat(scores)


def _tensors(data: Data) -> tuple[Tensor, Tensor]:
    """All samples."""
    x, y = Samples(data).read(slice(None))
    for name, nest in (("x", x), ("y", y)):
        if not isinstance(nest, Tensor):
            raise ValueError(f"data: has {name} of type {type(nest).__name__}, expected one tensor of all samples")
    return x, y


def _read(file: Path) -> dict[str, Any]:
    """The recorded state of a folder.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another format.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; SISA.fit writes it")
    state = json.loads(file.read_text())
    if state.get("format") != FOLDER_FORMAT:
        raise ValueError(f"{file}: has format {state.get('format')}, expected {FOLDER_FORMAT}")
    return state


def _architecture(model: nn.Module) -> dict[str, str]:
    """By name, the types of the modules and the dtypes and shapes of the tensors in the state dict."""
    modules = {name or "model": type(module).__name__ for name, module in model.named_modules()}
    tensors = {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    return modules | {name: f"{t.dtype} {list(t.shape)}" for name, t in tensors.items()}


def _name(loss_fn: Loss) -> str:
    return getattr(loss_fn, "__qualname__", type(loss_fn).__qualname__)


def _check_importable(**callables: Any) -> None:
    """Refuse callables that cannot be sent to worker processes.

    Raises:
        ValueError: the message names the argument.
    """
    for name, value in callables.items():
        try:
            pickle.dumps(value)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{name}: cannot be sent to worker processes ({error}); define it at the top level of a "
                "module, not as a lambda or inside of a function, or use workers=1"
            ) from error
