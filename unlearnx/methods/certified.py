"""Certified removal from logistic and softmax regression: Newton steps within a budget for the gradient's norm."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from unlearnx._arguments import check_fields, checked
from unlearnx._checks import check_at_least_one, integers, shown
from unlearnx.methods.design_matrix import Design, as_design
from unlearnx.methods.logistic import Objective, Step, loss_of

MAX_TRAINING_RESIDUAL = 1e-6  # norm of the gradient at which training stops
MAX_TRAINING_BUDGET_FRACTION = 1e-3  # training goes on to this fraction of the budget where that is smaller
NORM_TOLERANCE = 1e-6  # above a norm of 1, for rows that were normalised in float32


@dataclass(frozen=True)
class Entry:
    """An entry of the ledger: a training or an answered request.

    Attributes:
        kind: ``"training"``, ``"rows"``, ``"features"`` or ``"labels"``.
        count: number of rows, features or labels in the request; for a training, of rows that it used.
        linear: measured norm of the residual of the step's linear system; for a training, of the gradient after it.
        remainder: bound on the gradient that is left because the curvature changes along the step; 0 for a training.
        published: the published bound of the same quantity; never smaller for rows of at most unit norm.
        residual_bound: bound on the norm of the gradient after this entry.
        seconds: wall-clock time.
        reason: why the model was trained; empty for requests answered by a step.
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
    """The model that a removal of features would give.

    Attributes:
        columns: the features, ascending.
        theta: parameters, float64 (p, C), zero at the removed features.
        residual_bound: bound on the norm of the gradient.
        iterations: iterations of conjugate gradients in each Newton step.
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

    and answers each request by a Newton step on the objective without the removed data. If the norm of its gradient
    is at most ``sigma * epsilon / sqrt(2 ln(1.5 / delta))``, the :attr:`budget`, the model is (epsilon, delta)-
    indistinguishable from one that was retrained without the data. :attr:`residual_bound` is a bound on that norm, and
    the :attr:`ledger` records how each request adds to it. A request that would exceed the budget is answered by
    retraining with new noise, which the ledger records with its reason.

    What is certified:

    - rows and labels: the step is ``D = H^-1 g`` with the difference g of the gradients. The new gradient has three
      parts: the old gradient, the residual of the linear system, whose norm is measured, and the rows' remainders
      (:mod:`unlearnx.methods.logistic`), which add at most ``||X||_2`` times their norm. Each remainder is bounded by
      the third derivative of the loss. For rows of at most unit norm this is below the published bound
      ``||D|| ||X D|| ||X||_2 / 4``, for two classes at least five times; the ledger has both. ``||X||_2`` stands for
      an upper bound (:meth:`Design.spectral_norm_bound`), which removals can only lower.
    - features: their parameters, with their noise, are set to zero and leave the model. This changes every row, so the
      step corrects the whole gradient of the new objective, the part from earlier requests included, and
      ``residual_bound`` starts again from this step's residual and remainder, which is bounded as for rows.
    - several classes: softmax regression with its own constant, certified as one model; the source certifies one
      logistic regression for each class.

    The penalty of the published objective is ``n * lam' / 2``, so that its ``lam'`` is ``lam / n`` and removals change
    the weight decay; here it does not. There is no intercept: append a constant column before scaling the rows.
    Everything is computed in float64; the bound leaves out rounding.

    The object keeps the rows that it has forgotten, with weight zero, and the noise, which must stay secret: publish
    ``theta``, not the object.

    Args:
        epsilon, delta: parameters of the certificate.
        lam: weight of the L2 penalty, for the sum over the rows.
        sigma: standard deviation of the noise; a larger one gives a larger budget and a lower accuracy.
        certified: False trains without noise, accepts rows of any norm and has no budget; ``residual_bound`` is still
            valid.
        tolerance: residual of the linear systems, relative to the norm of their right-hand sides.
        seed: seed of the noise, which must stay secret too; None draws one that cannot be guessed.

    Attributes:
        theta: parameters, float64 (p, C); C is 1 for two classes.
        classes: the labels, ascending.
        ledger: an :class:`Entry` for each training and each answered request.

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
        check_fields(self)
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
        """The norm of the gradient that the certificate allows; infinite without a certificate."""
        return self.sigma * self.epsilon / math.sqrt(2 * math.log(1.5 / self.delta)) if self.certified else math.inf

    @property
    def residual_bound(self) -> float:
        """An upper bound on the norm of the objective's gradient at ``theta``."""
        self._trained()
        return self.ledger[-1].residual_bound

    @property
    def trainings(self) -> int:
        """Number of trainings, the first one included."""
        return sum(entry.kind == "training" for entry in self.ledger)

    def gradient_residual(self) -> float:
        """The norm of the objective's gradient at ``theta``, computed in a pass over the data."""
        objective, theta = self._trained(), self.theta[:, None]
        return float(objective.gradient(theta, objective.times(theta)).norm())

    @checked
    def fit(self, x: Any, y: Any) -> CertifiedRemoval:
        """Train on rows x and their labels; replaces an earlier model and its ledger.

        Args:
            x: (n, p), a tensor (dense or sparse), a NumPy array or a SciPy sparse matrix; a row per sample.
            y: labels (n,), any integers.

        Raises:
            TypeError: `x` is something else.
            ValueError: shapes do not match, there is only one class, values are not finite, or, with a certificate, a
                row's norm exceeds 1 or training cannot reach a gradient within the budget.
        """
        design = as_design(x)
        try:
            labels = torch.as_tensor(y)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"y is {shown(y)}, expected integers (n,)") from error
        if labels.is_floating_point() or labels.dim() != 1:
            raise ValueError(f"y: is {labels.dtype} of shape {list(labels.shape)}, expected integers (n,)")
        if len(labels) != design.shape[0]:
            raise ValueError(f"y: has {len(labels)} labels, expected {design.shape[0]}, the number of rows of x")
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

    @checked
    def predict(self, x: Any) -> Tensor:
        """The most probable label of each row of `x`, int64 (N,)."""
        objective, design = self._trained(), as_design(x)
        if design.shape[1] != len(self.theta):
            raise ValueError(f"x: has {design.shape[1]} features, expected {len(self.theta)}")
        probabilities = objective.loss.probabilities(design.times(self.theta)[:, None])[:, 0]
        chosen = (probabilities[:, 0] > 0.5).long() if probabilities.shape[1] == 1 else probabilities.argmax(1)
        return self.classes[chosen]

    @checked
    def remove(self, indices: Sequence[int] | Tensor) -> Entry:
        """Forget rows, given by their indices in the data that the model was fitted to.

        Returns:
            The new entry of the ledger, for the step or for the training in its place.

        Raises:
            ValueError: there are no indices, or they are out of range, repeated, removed already, or all that are left.
        """
        start, objective = time.perf_counter(), self._trained()
        removed = self._rows(indices)
        active = objective.active.clone()
        active[removed] = 0
        if not active.any():
            raise ValueError(f"indices: contains all {len(removed)} rows that are left, expected fewer")
        difference = self._gradient_of(removed, objective.y[removed])
        return self._newton_step("rows", len(removed), replace(objective, active=active), difference, start)

    @checked
    def correct_labels(self, indices: Sequence[int] | Tensor, labels: Any) -> Entry:
        """Replace the labels of rows that are left; returns as :meth:`remove`.

        Raises:
            ValueError: indices as for :meth:`remove`; the number of labels differs, or one is no class of the model.
        """
        start, objective = time.perf_counter(), self._trained()
        changed = self._rows(indices, ordered=True)
        try:
            labels = torch.as_tensor(labels).flatten()
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"labels is {shown(labels)}, expected a class for each of the indices") from error
        if len(labels) != len(changed):
            raise ValueError(f"labels: has {len(labels)} labels, expected {len(changed)} as indices")
        known = labels[:, None] == self.classes
        if not known.any(1).all():
            unknown = labels[~known.any(1)][0].item()
            raise ValueError(f"labels: has {unknown}, expected one of the classes {self.classes.tolist()}")
        y = objective.y.clone()
        y[changed] = known.long().argmax(1)
        difference = self._gradient_of(changed, objective.y[changed]) - self._gradient_of(changed, y[changed])
        return self._newton_step("labels", len(changed), replace(objective, y=y), difference, start)

    @checked
    def remove_features(self, columns: Sequence[int] | Tensor, *, steps: int = 1) -> Entry:
        """Forget features: set their columns to zero in every row, and their parameters too.

        Args:
            columns: indices of the features.
            steps: Newton steps; each about squares the norm of the gradient.

        Raises:
            ValueError: there are no columns, or they are out of range, repeated, removed already, or all that are left.
        """
        start, objective = time.perf_counter(), self._trained()
        chosen = self._features("columns", columns)
        changed = replace(objective, kept=self._without([chosen]))
        theta, last, _ = self._newton_steps(changed, steps)
        self._apply_or_retrain("features", len(chosen), changed, theta[:, 0], last, 0.0, start)
        return self.ledger[-1]

    @checked
    def many_features(self, requests: Sequence[Sequence[int] | Tensor], *, steps: int = 1) -> list[FeatureRemoval]:
        """The models that K separate removals of features would give, solved for together; this model is not changed.

        All systems share the passes over the data. With a `tolerance` of 1e-3 or more everything but the parameters is
        float32, and the bounds hold up to its rounding (:meth:`remove_features` is float64). Memory is a few times
        n * K * C numbers.

        Args:
            requests: K requests, each the indices of its columns as for :meth:`remove_features`.
            steps: Newton steps.

        Raises:
            ValueError: there are no requests, or one is not valid.
        """
        objective = self._trained()
        if not len(requests):
            raise ValueError("requests: is empty, expected at least one list of columns")
        chosen = [self._features(f"requests[{k}]", request) for k, request in enumerate(requests)]
        theta, last, iterations = self._newton_steps(replace(objective, kept=self._without(chosen)), steps)
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
        """Minimise an objective with new noise, and add an entry to the ledger."""
        start = time.perf_counter()
        if self.certified:
            noise = self.sigma * torch.randn(objective.noise.shape, dtype=torch.float64, generator=self._generator)
            objective = replace(objective, noise=noise)
        theta, residual = objective.minimise(min(MAX_TRAINING_RESIDUAL, MAX_TRAINING_BUDGET_FRACTION * self.budget))
        if residual > self.budget:
            raise ValueError(
                f"sigma is {self.sigma:g}, which allows a gradient of norm {self.budget:.3g}, but training reaches "
                f"{residual:.3g}; expected a larger sigma or epsilon"
            )
        self._objective, self.theta = objective, theta[:, 0]
        rows = int(objective.active.sum())
        self._record(Entry("training", rows, residual, 0.0, 0.0, residual, time.perf_counter() - start, reason))

    def _record(self, entry: Entry) -> None:
        self.ledger = [*self.ledger, entry]

    def _gradient_of(self, rows: Tensor, y: Tensor) -> Tensor:
        """Gradient of the losses of some rows with labels y, (p, 1, C)."""
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

    def _newton_step(self, kind: str, count: int, changed: Objective, difference: Tensor, start: float) -> Entry:
        """Take the Newton step for the objective whose gradient has changed by ``-difference``."""
        theta = self.theta[:, None]
        step = changed.step(changed.times(theta), difference, self.tolerance)
        self._apply_or_retrain(kind, count, changed, (theta + step.d)[:, 0], step, self.residual_bound, start)
        return self.ledger[-1]

    def _newton_steps(self, changed: Objective, steps: int) -> tuple[Tensor, Step, list[int]]:
        """Parameters (p, K, C) after Newton steps from the model's, the last step, and the iterations of every step."""
        check_at_least_one(steps=steps)
        return changed.newton(self.theta[:, None] * changed.kept[:, :, None], steps, self.tolerance)

    def _apply_or_retrain(
        self, kind: str, count: int, changed: Objective, theta: Tensor, step: Step, carried: float, start: float
    ) -> None:
        """Apply a step to the model if the budget allows, else retrain; `carried` is the bound before the step."""
        linear, remainder, published = (float(t[0]) for t in (step.linear, step.remainder, step.published))
        bound = carried + linear + remainder
        if not bound <= self.budget:  # also true for NaN
            self._train(
                changed, f"{kind}: the residual bound would be {bound:.3g}, above the budget of {self.budget:.3g}"
            )
            return
        self._objective, self.theta = changed, theta
        seconds = time.perf_counter() - start
        self._record(Entry(kind, count, linear, remainder, published, bound, seconds))

    def _rows(self, indices: Sequence[int] | Tensor, *, ordered: bool = False) -> Tensor:
        return _checked_indices("indices", indices, self._trained().active, ordered=ordered)

    def _features(self, name: str, columns: Sequence[int] | Tensor) -> Tensor:
        kept = self._trained().kept[:, 0]
        chosen = _checked_indices(name, columns, kept)
        if len(chosen) == int(kept.sum()):
            raise ValueError(f"{name}: contains all {len(chosen)} features that are left, expected fewer")
        return chosen

    def _without(self, choices: list[Tensor]) -> Tensor:
        """Weights (p, K) of the features, 0 or 1: column k is without ``choices[k]``."""
        kept = self._trained().kept.repeat(1, len(choices))
        for k, chosen in enumerate(choices):
            kept[chosen, k] = 0
        return kept


def _checked_indices(name: str, indices: Sequence[int] | Tensor, left: Tensor, *, ordered: bool = False) -> Tensor:
    """Checked indices of rows or features that are left (weight 1): ascending, or in the given order if `ordered`."""
    found = integers(name, indices)
    if not len(found):
        raise ValueError(f"{name}: is empty, expected at least one")
    outside = (found < 0) | (found >= len(left))
    if outside.any():
        raise ValueError(f"{name}: {int(found[outside][0])} is out of range, expected 0 to {len(left) - 1}")
    if (left[found] == 0).any():
        raise ValueError(f"{name}: {int(found[left[found] == 0][0])} was removed already")
    distinct, counts = found.unique(return_counts=True)
    if len(distinct) < len(found):
        raise ValueError(f"{name}: {int(distinct[counts > 1][0])} is given twice")
    return found if ordered else distinct


def _check_norms(design: Design) -> None:
    norms = design.squared_norms().sqrt()
    too_long = norms > 1 + NORM_TOLERANCE
    if too_long.any():
        raise ValueError(
            f"x: {int(too_long.sum())} of {len(norms)} rows have a norm above 1, up to {float(norms.max()):.4g}; the "
            "certificate needs norms of at most 1: scale the rows, or pass certified=False"
        )
