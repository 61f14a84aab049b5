"""SISA: an ensemble that forgets exactly, by retraining only what saw the points to forget."""

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
from unlearnx._checks import check_at_least_one, model_device
from unlearnx._data import Data, Samples
from unlearnx._files import write_atomically
from unlearnx._losses import Loss
from unlearnx._progress import progress_bar
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

FORMAT = 1  # of the folder
STATE = "sisa.json"
BATCH_SIZE = 256  # of predictions


@dataclass(frozen=True)
class SISACost:
    """What a removal retrains.

    Attributes:
        retrained_slices: as (shard, slice).
        samples: samples visited by training, counted with repetition.
        full_samples: those that training everything would visit.

    Example:
        >>> SISACost(retrained_slices=((0, 1), (0, 2)), samples=20, full_samples=200).share
        0.1
    """

    retrained_slices: tuple[tuple[int, int], ...]
    samples: int
    full_samples: int

    @property
    def share(self) -> float:
        """Samples visited, as a share of those that training everything would visit."""
        return self.samples / self.full_samples


@dataclass(frozen=True)
class SISAOutcome(SISACost):
    """What a removal has retrained.

    Attributes:
        seconds: wall-clock time of the whole call.

    Example:
        >>> SISAOutcome(retrained_slices=((0, 1),), samples=10, full_samples=200, seconds=0.2).share
        0.05
    """

    seconds: float


@dataclass(frozen=True)
class _Fitted:
    """The data with what has been removed from it."""

    x: Tensor
    y: Tensor
    points: list[bytes]
    removed: frozenset[int]
    shards: list[Shard]

    @property
    def checksum(self) -> str:
        """Of the points that are left, in their order; the rows of removed ones may hold anything."""
        retained = (point for i, point in enumerate(self.points) if i not in self.removed)
        return hashlib.blake2b(b"".join(retained), digest_size=16).hexdigest()


@dataclass
class SISA:
    """Sharded, isolated, sliced and aggregated training.

    The points are dealt out to shards, each of which trains a constituent of its own, slice after slice, with a
    checkpoint after each. Removing a point retrains its shard from its slice on. The result is that of
    training without the point, to the bit: ``fit(data)`` and ``remove(i)`` end in the same files as ``fit`` on data
    that never had row i, on the same kind of device with the same number of threads.

    Other methods are called as ``method(model, request)``. SISA is not: it cannot forget what a model has learned that
    was trained in another way, so it trains its own.

    The folder survives being killed. A removal is recorded before anything else is done; checkpoints are named after
    the points that they have seen, so that those of points now removed are known by their names, and deleted before
    retraining begins. Whatever is missing is trained by :meth:`open`. Only one program may work on a folder at a time.

    Each slice is a training of its own, with its own optimizer and learning rate schedule. (The published code keeps
    the optimizer from slice to slice, but not in a checkpoint: its retraining is not that of training from scratch.)
    Batches grow a little where the last one would be a single sample, and a constituent of fewer than two points is
    left out. Constituents see few points: expect a loss of accuracy that grows with the number of shards.

    Under ``torchrun`` the shards that have to be trained are dealt out to the ranks, which make the same calls and
    share the folder.

    Args:
        factory: builds an untrained model that maps x to class scores (N, classes).
        folder: of the checkpoints.
        shards: constituents.
        slices: of each shard.
        aggregate: ``"vote"`` counts the classes that the constituents predict, ``"mean"`` takes the mean of their
            probabilities.
        training: recipe of every constituent. Its epochs are passes over a whole shard, whatever the number of
            slices; its seed is not used.
        seed: of the division, the initial parameters and the order of samples.
        workers: processes that train shards. They import what they need: `factory` and the loss are to be importable,
            and a script needs ``if __name__ == "__main__":``.
        device: to train and predict on; None leaves models where the factory makes them.
        progress: show a progress bar (needs ``unlearnx[experiments]``).

    Raises:
        ValueError: an argument does not fit.

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
        check_at_least_one(shards=self.shards, slices=self.slices, workers=self.workers)
        if self.aggregate not in get_args(Aggregate):
            raise ValueError(f"aggregate is {self.aggregate!r}, expected one of {', '.join(get_args(Aggregate))}")
        if self.workers > 1:
            _check_importable(factory=self.factory, loss_fn=self.training.loss_fn)
        model = self._untrained(0)
        if model is self._untrained(0):
            raise ValueError("factory: gave the same model twice, expected a new one at every call")
        self._architecture, self._home = _architecture(model), model_device(model)
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
        """Go on with a folder, and finish what was interrupted: training of the whole or after a removal.

        Args:
            folder: that :meth:`fit` was given.
            factory: the same as then.
            data: the same as then; the rows of removed points are not used, and may have been overwritten.
            loss_fn: the same as then.
            workers: as of :class:`SISA`, like the others.
            device: may be another.
            progress: show a progress bar.

        Raises:
            FileNotFoundError: the folder holds no SISA.
            ValueError: the factory, the data or the loss are others than those of :meth:`fit`.
        """
        state = _read(Path(folder) / STATE)
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
        with distributed.failing_together(sisa._home):
            sisa._check_recipe(recipe)
            x, y = Samples(data).read(slice(None))
            if len(x) != state["points"]:
                raise ValueError(f"data: has {len(x)} points, expected the {state['points']} of {folder}")
            fitted = sisa._divided(x, y, digests(x, y), frozenset(state["removed"]))
            if fitted.checksum != state["checksum"]:
                raise ValueError(f"data: differs from that of {folder} in points that are left, or in their order")
        sisa._fitted = fitted
        sisa._finish()
        return sisa

    def fit(self, data: Data) -> SISAOutcome:
        """Train all constituents.

        Args:
            data: pairs (x, y); held in memory as tensors.

        Raises:
            FileExistsError: the folder holds a SISA already.
            ValueError: there are fewer points than slices in all.
            FloatingPointError: the loss of an epoch is not finite.
        """
        start = time.perf_counter()
        with self._once() as first:
            if first and self._file.exists():
                raise FileExistsError(f"{self._file.parent} holds a SISA already; SISA.open goes on with it")
            x, y = Samples(data).read(slice(None))
            if len(x) < self.shards * self.slices:
                raise ValueError(
                    f"data: has {len(x)} points, expected at least shards * slices = {self.shards} * {self.slices}"
                )
            fitted = self._divided(x, y, digests(x, y), frozenset())
        self._commit(fitted)
        return self._outcome(self._finish(), start)

    def remove(self, indices: Sequence[int] | Tensor) -> SISAOutcome:
        """Forget points, and retrain what has seen them.

        Args:
            indices: of points in the data that :meth:`fit` was given.

        Raises:
            ValueError: no indices, some out of range, given twice or removed before, or too few points would be left.
            RuntimeError: there is nothing to remove from, or another program has changed the folder.
            FloatingPointError: the loss of an epoch is not finite; the removal stands, and predictions are refused.
        """
        start = time.perf_counter()
        with self._once() as first:
            after = self._without(indices)
            if first and frozenset(_read(self._file)["removed"]) != self._ready.removed:
                raise RuntimeError(f"{self._file}: another program has removed points; open the folder anew")
        self._commit(after)
        return self._outcome(self._finish(), start)

    def cost(self, indices: Sequence[int] | Tensor) -> SISACost:
        """What :meth:`remove` would retrain; raises as it does."""
        before, after = self._ready.shards, self._without(indices).shards
        return self._cost(
            [(s, r) for s in range(self.shards) for r in range(self.slices) if before[s].keys[r] != after[s].keys[r]],
            after,
        )

    @property
    def removed(self) -> list[int]:
        """Indices of the points removed so far, ascending."""
        return sorted(self._ready.removed)

    def predict(self, x: Tensor) -> Tensor:
        """Class of every row of `x`, int64 (N,), on the CPU.

        Of classes with as many votes that with the larger mean probability is taken.

        Raises:
            ValueError: `x` has not the shape of the data, or a constituent gives no finite class scores.
            RuntimeError: there is no trained ensemble.
        """
        return self._aggregated(x)[1].argmax(1)

    def probabilities(self, x: Tensor) -> Tensor:
        """Probabilities of the classes, float64 (N, classes), on the CPU: mean ones, or shares of the votes.

        Raises:
            ValueError: as of :meth:`predict`.
            RuntimeError: as of :meth:`predict`.
        """
        return self._aggregated(x)[0]

    @property
    def _file(self) -> Path:
        return Path(self.folder) / STATE

    @property
    def _ready(self) -> _Fitted:
        if self._fitted is None:
            raise RuntimeError("SISA has no data yet; call fit(), or SISA.open() for a folder that has been fitted")
        return self._fitted

    def _untrained(self, shard: int) -> nn.Module:
        return build(self.factory, derived_seed(self.seed, shard, "start"), self.device)

    def _checkpoint(self, shard: int, key: str, r: int) -> Path:
        return Path(self.folder) / f"shard-{shard}" / f"slice-{r}.{key}.pt"

    @property
    def _recipe(self) -> dict[str, Any]:
        """Everything but the data that a checkpoint depends on."""
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

    def _divided(self, x: Tensor, y: Tensor, points: list[bytes], removed: frozenset[int]) -> _Fitted:
        retained = (i for i in range(len(points)) if i not in removed)
        recipe = json.dumps(self._recipe, sort_keys=True)
        shards = divide(points, retained, self.shards, self.slices, seed=self.seed, recipe=recipe)
        return _Fitted(x, y, points, removed, shards)

    def _without(self, indices: Sequence[int] | Tensor) -> _Fitted:
        now = self._ready
        more = Request.remove((now.x, now.y), indices).forget.tolist()
        again = now.removed.intersection(more)
        if again:
            raise ValueError(f"indices: point {min(again)} was removed before")
        after = self._divided(now.x, now.y, now.points, now.removed.union(more))
        if not any(shard.votes for shard in after.shards):
            raise ValueError("indices: leaves no shard with two points, expected some to retain")
        return after

    @contextmanager
    def _once(self) -> Iterator[bool]:
        """Whether this process does the work; the others wait, and fail where it fails."""
        with distributed.failing_together(self._home):
            yield distributed.is_first()

    def _commit(self, fitted: _Fitted) -> None:
        """Record the data and what is removed from it: from here on that is what the folder has to hold."""
        state = {
            "format": FORMAT,
            "recipe": self._recipe,
            "aggregate": self.aggregate,
            "points": len(fitted.points),
            "removed": sorted(fitted.removed),
            "checksum": fitted.checksum,
        }
        text = json.dumps(state, indent=1).encode()
        with distributed.failing_together(self._home):
            own = torch.tensor(derived_seed(text.hex()), device=self._home)
            if distributed.broadcast_(own.clone()) != own:
                raise ValueError("indices or data: differ between the processes, expected the same in all of them")
        with self._once() as first:
            if first:
                write_atomically(self._file, lambda file: file.write(text))
        self._fitted = fitted
        current = {shard.keys[-1] for shard in fitted.shards}
        self._constituents = {key: model for key, model in self._constituents.items() if key in current}

    def _finish(self) -> list[tuple[int, int]]:
        """Delete what the folder should not hold, and train what it lacks; returns that."""
        fitted = self._ready
        names = [
            [self._checkpoint(s, key, r) for r, key in enumerate(shard.keys)] for s, shard in enumerate(fitted.shards)
        ]
        with self._once() as first:
            if first:
                self._sweep({file for files in names for file in files})
            # Before anyone trains: all are to find the same files missing.
            jobs = [job for s, files in enumerate(names) if (job := self._job(s, files)) is not None]
        own = list(distributed.round_robin(jobs))
        with (
            distributed.failing_together(self._home),
            progress_bar("training slices", sum(len(job.slices) for job in own), self.progress) as advance,
        ):
            run_all(own, self.workers, lambda job: advance(len(job.slices)))
        return [place for job in jobs for place in job.slices]

    def _sweep(self, current: set[Path]) -> None:
        """Delete checkpoints that saw removed points, and what a killed program left half written."""
        folder = Path(self.folder)
        for file in [*folder.glob("shard-*/slice-*"), *folder.glob("shard-*/.slice-*"), *folder.glob(f".{STATE}.*")]:
            if file not in current:
                file.unlink()

    def _job(self, s: int, files: list[Path]) -> Job | None:
        """What shard `s` lacks, if anything."""
        first = next((r for r, file in enumerate(files) if not file.exists()), None)
        if first is None:
            return None
        fitted = self._ready
        shard = fitted.shards[s]
        x, y = (t[shard.indices].cpu() for t in (fitted.x, fitted.y))
        return Job(self.factory, self.training, self.device, self.seed, s, first, files, shard.stops, x, y)

    def _cost(self, slices: list[tuple[int, int]], shards: list[Shard]) -> SISACost:
        epochs = epochs_per_slice(self.training.epochs, self.slices)
        visits = [[n * e for n, e in zip(shard.stops, epochs, strict=True)] for shard in shards]
        return SISACost(tuple(slices), sum(visits[s][r] for s, r in slices), sum(map(sum, visits)))

    def _outcome(self, slices: list[tuple[int, int]], start: float) -> SISAOutcome:
        cost = self._cost(slices, self._ready.shards)
        return SISAOutcome(**vars(cost), seconds=time.perf_counter() - start)

    def _ensemble(self) -> list[nn.Module]:
        models = []
        for s, shard in enumerate(self._ready.shards):
            key = shard.keys[-1]
            if not shard.votes:
                continue
            if key not in self._constituents:
                file = self._checkpoint(s, key, self.slices - 1)
                if not file.exists():
                    raise RuntimeError(f"shard {s} is not trained, as training was interrupted; SISA.open finishes it")
                model = self._untrained(s)
                load(model, file)
                self._constituents[key] = model.eval()
            models.append(self._constituents[key])
        return models

    def _aggregated(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities of the classes, and scores that differ from them where votes are tied, (N, classes) each."""
        shape = self._ready.x.shape[1:]
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
            return votes.cpu(), (votes + mean / (2 * len(each))).cpu()  # less than half a vote

        probabilities, scores = zip(*each_batch(models, (x, x), BATCH_SIZE, None, aggregate), strict=True)
        return torch.cat(probabilities), torch.cat(scores)


def _read(file: Path) -> dict[str, Any]:
    """The state of a folder.

    Raises:
        FileNotFoundError: it has none.
        ValueError: it is of another version.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; SISA.fit makes it")
    state = json.loads(file.read_text())
    if state.get("format") != FORMAT:
        raise ValueError(f"{file}: has format {state.get('format')}, expected {FORMAT}")
    return state


def _architecture(model: nn.Module) -> dict[str, str]:
    """Types of the modules, dtypes and shapes of the tensors, by their names."""
    modules = {name or "model": type(module).__name__ for name, module in model.named_modules()}
    tensors = {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    return modules | {name: f"{t.dtype} {list(t.shape)}" for name, t in tensors.items()}


def _name(loss_fn: Loss) -> str:
    return getattr(loss_fn, "__qualname__", type(loss_fn).__qualname__)


def _check_importable(**callables: Any) -> None:
    """Refuse what worker processes cannot be sent.

    Raises:
        ValueError: the message names the argument.
    """
    for name, value in callables.items():
        try:
            pickle.dumps(value)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{name}: cannot be sent to worker processes ({error}); define it at the top of a module, "
                "neither as a lambda nor inside of a function, or take workers=1"
            ) from error
