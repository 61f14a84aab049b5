"""Certified removal from logistic and softmax regression: Newton steps under a budget of gradient residual."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from unlearnx._checks import check_at_least_one
from unlearnx.methods.design_matrix import Design, as_design
from unlearnx.methods.logistic import Objective, Step, loss_of

TRAINING_RESIDUAL = 1e-6  # that training may leave
NORM_SLACK = 1e-6  # above a norm of 1, for rows that were scaled in float32
TRAINING_SHARE = 1e-3  # of the budget that training may leave as a residual, at most


@dataclass(frozen=True)
class Entry:
    """A line of the ledger.

    Attributes:
        kind: ``"training"``, ``"rows"``, ``"features"`` or ``"labels"``.
        count: rows, features or labels that the request named; of a training, the rows that it used.
        linear: norm of what the solver left of its linear system, or training of the gradient; measured.
        remainder: bound of what the changing curvature left of the gradient; 0 for a training.
        published: the published bound of the same, which is never smaller for rows of at most unit norm.
        residual_bound: bound of the gradient's norm after this line.
        seconds: wall-clock time.
        reason: why there was a training; empty for requests.
    """

    kind: str
    count: int
    linear: float
    remainder: float
    published: float
    residual_bound: float
    seconds: float
    reason: str = ""


@dataclass(frozen=True)
class FeatureRemoval:
    """What the removal of features would give.

    Attributes:
        columns: the features, ascending.
        theta: parameters, float64 (p, C), zero at the removed features.
        residual_bound: of the gradient's norm.
        iterations: of conjugate gradients, in each step.
    """

    columns: list[int]
    theta: Tensor
    residual_bound: float
    iterations: list[int]


@dataclass
class CertifiedRemoval:
    r"""L2-regularised logistic (two classes) or softmax regression that forgets with an (epsilon, delta) certificate.

    Training minimises, over the parameters theta (p, C),

    .. math:: \sum_i \ell(x_i, y_i; \theta) + \frac{\lambda}{2} \lVert \theta \rVert^2 + \langle b, \theta \rangle,
        \qquad b \sim N(0, \sigma^2 I),

    and each request is answered by a Newton step on the objective that is changed accordingly. If the norm of that
    objective's gradient is at most ``sigma * epsilon / sqrt(2 ln(1.5 / delta))``, the :attr:`budget`, the model cannot
    be told from one retrained without the data, within (epsilon, delta). The :attr:`ledger` adds up bounds of that
    norm, :attr:`residual_bound`; a request that would exceed the budget is answered by retraining with new noise, which
    the ledger records with its reason.

    What is certified:

    - rows and labels: a step ``D = H^-1 g``, g the difference of the gradients. It leaves what the solver left of its
      system, which is measured, plus at most ``||X||_2`` times the norm of the rows' remainders
      (:mod:`unlearnx.methods.logistic`), and keeps what was left before. The remainders are bounded row by row from the
      third derivative of the loss, so that the sum is below the published ``||D|| ||X D|| ||X||_2 / 4`` for rows of at
      most unit norm, by a factor of five for two classes at least; the ledger has both. ``||X||_2`` is bounded from
      above (:meth:`Design.spectral_norm_bound`), and removals only lower it.
    - features: their parameters are set to zero and leave the model, with their noise. That changes every row, so the
      step starts from the whole gradient of the new objective, exactly; what was left before is corrected with it, and
      the bound starts anew. Nothing else enters: the remainder is the same as for rows.
    - several classes: softmax with its own constant, certified as one model, where the source certifies one logistic
      regression for each class.

    The published objective has ``n * lam' / 2``: its lam' is ``lam / n``, and a removal there changes the weight decay,
    here it does not. There is no intercept: append a constant column before the rows are scaled. Everything is float64;
    rounding is not in the bound.

    The object keeps the rows that it has forgotten, at weight zero, and the noise, which has to stay secret: publish
    ``theta``, not the object.

    Args:
        epsilon, delta: of the certificate.
        lam: weight of the L2 penalty, for the sum over the rows.
        sigma: standard deviation of the noise: more costs accuracy and buys budget.
        certified: False trains without noise, takes rows of any norm and has no budget; ``residual_bound`` holds all
            the same.
        tolerance: residual of the linear systems, relative to their right-hand sides.
        seed: of the noise; whoever knows it knows the noise. None draws one that cannot be guessed.

    Attributes:
        theta: parameters, float64 (p, C); C is 1 for two classes.
        classes: the labels, ascending.
        ledger: what was trained and answered so far.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> x = torch.nn.functional.normalize(torch.randn(200, 5, dtype=torch.float64))
        >>> model = CertifiedRemoval(sigma=10.0, seed=0).fit(x, (x[:, 0] > 0).long())
        >>> entry = model.remove([3, 14, 159])
        >>> entry.kind, model.trainings, 0 < model.residual_bound < model.budget
        ('rows', 1, True)

    Source: Guo, Goldstein, Hannun and van der Maaten, "Certified Data Removal from Machine Learning Models", ICML 2020,
    theorem 3 and corollary 1; features and labels as in Warnecke et al., "Machine Unlearning of Features and Labels",
    NDSS 2023.
    """

    epsilon: float = 1.0
    delta: float = 1e-4
    lam: float = 1.0
    sigma: float = 1.0
    certified: bool = True
    tolerance: float = 1e-4
    seed: int | None = None
    ledger: list[Entry] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        for name in ("epsilon", "lam", "sigma"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}, expected a finite number > 0")
        for name in ("delta", "tolerance"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise ValueError(f"{name} is {value}, expected a number between 0 and 1")
        self._objective: Objective | None = None

    @property
    def budget(self) -> float:
        """The gradient residual that the certificate allows; infinite where nothing is certified."""
        return self.sigma * self.epsilon / math.sqrt(2 * math.log(1.5 / self.delta)) if self.certified else math.inf

    @property
    def residual_bound(self) -> float:
        """At least the norm of the objective's gradient at ``theta``."""
        self._trained()
        return self.ledger[-1].residual_bound

    @property
    def trainings(self) -> int:
        """How often the model was trained, the first time included."""
        return sum(entry.kind == "training" for entry in self.ledger)

    def gradient_residual(self) -> float:
        """The norm of the objective's gradient at ``theta``, by a pass over the data: what the bound bounds."""
        objective, theta = self._trained(), self.theta[:, None]
        return float(objective.gradient(theta, objective.times(theta)).norm())

    def fit(self, x: Any, y: Any) -> CertifiedRemoval:
        """Train on rows x and their labels; forgets what was trained before, the ledger included.

        Args:
            x: (n, p), a tensor (dense or sparse), an array or a sparse matrix of SciPy.
            y: labels (n,), any integers.

        Raises:
            TypeError: `x` is something else.
            ValueError: shapes do not fit, there is one class only, values are not finite, or, where the model is to be
                certified, a row's norm exceeds 1 or training cannot reach a residual within the budget.
        """
        design = as_design(x)
        labels = torch.as_tensor(y)
        if labels.is_floating_point() or labels.dim() != 1:
            raise ValueError(f"y: is {labels.dtype} of shape {list(labels.shape)}, expected integers (n,)")
        if len(labels) != design.shape[0]:
            raise ValueError(f"y: has {len(labels)} labels, expected {design.shape[0]} as x has rows")
        self.classes, members = labels.unique(return_inverse=True)
        if len(self.classes) < 2:
            raise ValueError(f"y: has {len(self.classes)} class, expected at least 2")
        if self.certified:
            _check_norms(design)
        n, p = design.shape
        columns = 1 if len(self.classes) == 2 else len(self.classes)
        self._generator = torch.Generator().manual_seed(secrets.randbits(63) if self.seed is None else self.seed)
        self.ledger = []
        self._train(
            Objective(
                design,
                members,
                loss_of(len(self.classes)),
                self.lam,
                noise=torch.zeros(p, columns, dtype=torch.float64),
                active=torch.ones(n, dtype=torch.float64),
                kept=torch.ones(p, 1, dtype=torch.float64),
                spectral_norm=design.spectral_norm_bound(),
            ),
            "first",
        )
        return self

    def predict(self, x: Any) -> Tensor:
        """The likeliest label of each row, int64 (N,)."""
        objective, design = self._trained(), as_design(x)
        if design.shape[1] != len(self.theta):
            raise ValueError(f"x: has {design.shape[1]} features, expected {len(self.theta)}")
        probabilities = objective.loss.probabilities(design.times(self.theta)[:, None])[:, 0]
        chosen = (probabilities[:, 0] > 0.5).long() if probabilities.shape[1] == 1 else probabilities.argmax(1)
        return self.classes[chosen]

    def remove(self, indices: Sequence[int] | Tensor) -> Entry:
        """Forget rows, by their numbers in the data that the model was fitted to.

        Returns:
            The line of the ledger: of the step, or of the training that took its place.

        Raises:
            ValueError: numbers are missing, out of range, given twice, removed already, or those of all rows left.
        """
        start, objective = time.perf_counter(), self._trained()
        gone = self._rows(indices)
        active = objective.active.clone()
        active[gone] = 0
        if not active.any():
            raise ValueError(f"indices: names all {len(gone)} rows that are left, expected some to retain")
        difference = self._gradient_of(gone, objective.y[gone])
        return self._answer("rows", len(gone), replace(objective, active=active), difference, start)

    def correct_labels(self, indices: Sequence[int] | Tensor, labels: Any) -> Entry:
        """Replace labels of rows that are left; the rest is as for :meth:`remove`.

        Raises:
            ValueError: numbers as above; labels are not as many, or none of the classes that the model was fitted to.
        """
        start, objective = time.perf_counter(), self._trained()
        changed = self._rows(indices, ordered=True)
        labels = torch.as_tensor(labels).flatten()
        if len(labels) != len(changed):
            raise ValueError(f"labels: has {len(labels)} labels, expected {len(changed)} as indices")
        known = labels[:, None] == self.classes
        if not known.any(1).all():
            unknown = labels[~known.any(1)][0].item()
            raise ValueError(f"labels: {unknown} is none of the classes {self.classes.tolist()}")
        y = objective.y.clone()
        y[changed] = known.long().argmax(1)
        difference = self._gradient_of(changed, objective.y[changed]) - self._gradient_of(changed, y[changed])
        return self._answer("labels", len(changed), replace(objective, y=y), difference, start)

    def remove_features(self, columns: Sequence[int] | Tensor, *, steps: int = 1) -> Entry:
        """Forget features: set their columns to zero in every row, and their parameters with them.

        Args:
            columns: their numbers.
            steps: Newton steps; each brings the residual to about the square of the one before.

        Raises:
            ValueError: numbers are missing, out of range, given twice, removed already, or those of all features left.
        """
        start, objective = time.perf_counter(), self._trained()
        chosen = self._features("columns", columns)
        changed = replace(objective, kept=self._without([chosen]))
        theta, last, _ = self._newton(changed, steps)
        self._settle("features", len(chosen), changed, theta[:, 0], last, 0.0, start)
        return self.ledger[-1]

    def many_features(self, requests: Sequence[Sequence[int] | Tensor], *, steps: int = 1) -> list[FeatureRemoval]:
        """What each of K removals of features would give on its own, solved together; the model stays as it is.

        All systems share their passes over the data, and with a `tolerance` of 1e-3 or more they do so in float32, all
        but the parameters: bounds then hold to its rounding (:meth:`remove_features` is float64). Memory holds a few
        times n * K * C numbers.

        Args:
            requests: for each, numbers of the columns as for :meth:`remove_features`.
            steps: Newton steps.

        Raises:
            ValueError: there are no requests, or one is not valid.
        """
        objective = self._trained()
        if not len(requests):
            raise ValueError("requests: is empty, expected at least one choice of features")
        chosen = [self._features(f"requests[{k}]", request) for k, request in enumerate(requests)]
        theta, last, iterations = self._newton(replace(objective, kept=self._without(chosen)), steps)
        bounds = (last.linear + last.remainder).tolist()
        return [
            FeatureRemoval(columns.tolist(), theta[:, k].clone(), bounds[k], iterations)
            for k, columns in enumerate(chosen)
        ]

    def _trained(self) -> Objective:
        if self._objective is None:
            raise RuntimeError("CertifiedRemoval: is not trained yet, call fit(x, y) first")
        return self._objective

    def _train(self, objective: Objective, reason: str) -> None:
        """Minimise an objective with new noise, and write the line of the ledger."""
        start = time.perf_counter()
        if self.certified:
            noise = self.sigma * torch.randn(objective.noise.shape, dtype=torch.float64, generator=self._generator)
            objective = replace(objective, noise=noise)
        theta, residual = objective.minimise(min(TRAINING_RESIDUAL, TRAINING_SHARE * self.budget))
        if residual > self.budget:
            raise ValueError(
                f"sigma: with sigma={self.sigma:g} the budget is {self.budget:.3g}, less than the residual "
                f"{residual:.3g} that training leaves; expected more noise"
            )
        self._objective, self.theta = objective, theta[:, 0]
        rows = int(objective.active.sum())
        self._write(Entry("training", rows, residual, 0.0, 0.0, residual, time.perf_counter() - start, reason))

    def _write(self, entry: Entry) -> None:
        self.ledger = [*self.ledger, entry]

    def _gradient_of(self, rows: Tensor, y: Tensor) -> Tensor:
        """The rows' part of the gradient with labels y, (p, 1, C)."""
        objective = self._trained()
        part = replace(
            objective,
            design=objective.design.rows(rows),
            y=y,
            lam=0.0,
            noise=torch.zeros_like(objective.noise),
            active=torch.ones(len(rows), dtype=torch.float64),
        )
        theta = self.theta[:, None]
        return part.gradient(theta, part.times(theta))

    def _answer(self, kind: str, count: int, changed: Objective, difference: Tensor, start: float) -> Entry:
        """Take the Newton step for a gradient that has lost `difference`."""
        theta = self.theta[:, None]
        step = changed.step(changed.times(theta), difference, self.tolerance)
        self._settle(kind, count, changed, (theta + step.d)[:, 0], step, self.residual_bound, start)
        return self.ledger[-1]

    def _newton(self, changed: Objective, steps: int) -> tuple[Tensor, Step, list[int]]:
        """Parameters (p, K, C) after Newton steps from those of the model, the last step, and all iterations."""
        check_at_least_one(steps=steps)
        return changed.newton(self.theta[:, None] * changed.kept[:, :, None], steps, self.tolerance)

    def _settle(
        self, kind: str, count: int, changed: Objective, theta: Tensor, step: Step, carried: float, start: float
    ) -> None:
        """Take a step over into the model if the budget allows, else train the model anew."""
        linear, remainder, published = (float(t[0]) for t in (step.linear, step.remainder, step.published))
        bound = carried + linear + remainder
        if not bound <= self.budget:  # nor where it is NaN
            self._train(changed, f"{kind}: the residual bound would be {bound:.3g} of a budget of {self.budget:.3g}")
            return
        self._objective, self.theta = changed, theta
        seconds = time.perf_counter() - start
        self._write(Entry(kind, count, linear, remainder, published, bound, seconds))

    def _rows(self, indices: Sequence[int] | Tensor, *, ordered: bool = False) -> Tensor:
        return _numbers("indices", indices, self._trained().active, ordered=ordered)

    def _features(self, name: str, columns: Sequence[int] | Tensor) -> Tensor:
        kept = self._trained().kept[:, 0]
        chosen = _numbers(name, columns, kept)
        if len(chosen) == int(kept.sum()):
            raise ValueError(f"{name}: names all {len(chosen)} features that are left, expected some to keep")
        return chosen

    def _without(self, choices: list[Tensor]) -> Tensor:
        """Weights (p, K) of the features, without each choice."""
        kept = self._trained().kept.repeat(1, len(choices))
        for k, chosen in enumerate(choices):
            kept[chosen, k] = 0
        return kept


def _numbers(name: str, numbers: Sequence[int] | Tensor, left: Tensor, *, ordered: bool = False) -> Tensor:
    """Distinct numbers of rows or features that are left (weight 1), ascending unless `ordered` as given."""
    found = torch.as_tensor(numbers)
    if found.dtype == torch.bool or (found.is_floating_point() and found.numel()):
        raise ValueError(f"{name}: is {found.dtype}, expected integers")
    found = found.long().flatten()
    if not len(found):
        raise ValueError(f"{name}: is empty, expected at least one")
    outside = (found < 0) | (found >= len(left))
    if outside.any():
        raise ValueError(f"{name}: {int(found[outside][0])} is out of range for {len(left)}")
    if (left[found] == 0).any():
        raise ValueError(f"{name}: {int(found[left[found] == 0][0])} was removed already")
    distinct, counts = found.unique(return_counts=True)
    if len(distinct) < len(found):
        raise ValueError(f"{name}: {int(distinct[counts > 1][0])} is given twice")
    return found if ordered else distinct


def _check_norms(design: Design) -> None:
    norms = design.squared_norms().sqrt()
    too_long = norms > 1 + NORM_SLACK
    if too_long.any():
        raise ValueError(
            f"x: {int(too_long.sum())} of {len(norms)} rows have a norm above 1, up to {float(norms.max()):.4g}; the "
            "certificate needs unit rows at most: scale them, or pass certified=False"
        )
