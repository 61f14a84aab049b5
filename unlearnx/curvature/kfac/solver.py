"""EK-FAC and K-FAC: what fits factors, and solves or preconditions with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from unlearnx._arguments import checked
from unlearnx._checks import Params
from unlearnx._data import Data
from unlearnx._losses import Loss
from unlearnx.curvature.kfac.factors import Factors
from unlearnx.curvature.kfac.fit import fit_factors
from unlearnx.curvature.kfac.statistics import APPROXIMATIONS
from unlearnx.curvature.rows import CurvatureRows
from unlearnx.curvature.solvers.preconditioner import approximate_inverse
from unlearnx.curvature.solvers.solution import Solver
from unlearnx.curvature.solvers.system import System

FISHER_TYPES = ("mc", "exact", "empirical")


@dataclass(kw_only=True)
class KFAC(Solver):
    """Kronecker factors of the Fisher information: of each layer ``E[dy dy^T] (x) E[x x^T]``.

    One forward and backward pass over the data. Linear layers and convolutions have factors, each group of a
    convolution its own, a bias together with its weight, and so do embeddings, the projections of attention and the
    gates of recurrent layers; a layer used several times has the positions of all uses. Of more than 4,096 outputs,
    blocks of as many have factors of their own. Everything else has its exact diagonal.

    As a solver, it fits the factors of the operator's own model and data and applies their damped inverse, times the
    factor with which the residual is smallest; the operator must have a damping > 0. As ``preconditioner=`` of
    :class:`ConjugateGradient` or :class:`LiSSA` it makes an approximate inverse of the matrix that these iterate with.

    Args:
        fisher_type: ``"mc"`` draws labels from the model; ``"exact"`` takes the expectation over them, with a backward
            pass for each; ``"empirical"`` takes the labels of the data; see :func:`unlearnx.curvature.fisher_diagonal`.
        approximation: for layers with several positions a sample: ``"expand"`` takes each position for a sample of its
            own, ``"reduce"`` averages inputs and sums gradients over them. Embeddings are always expanded.
        tolerance: residual at which a solution counts as converged.
        seed: of the labels that ``"mc"`` draws as a solver or preconditioner.

    Source: Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML 2015;
    convolutions: Grosse and Martens, ICML 2016; the two approximations: Eschenhagen et al., NeurIPS 2023.

    Example:
        >>> model, x, y = nn.Linear(4, 3), torch.randn(50, 4), torch.arange(50) % 3
        >>> factors = KFAC().fit(model, nn.functional.cross_entropy, (x, y), fisher_type="exact")
        >>> factors.trace() > 0
        True
    """

    fisher_type: str = "mc"
    approximation: str = "expand"
    seed: int = 0
    _corrected: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fisher_type not in FISHER_TYPES:
            raise ValueError(f"fisher_type is {self.fisher_type!r}, expected one of {', '.join(FISHER_TYPES)}")
        if self.approximation not in APPROXIMATIONS:
            raise ValueError(f"approximation is {self.approximation!r}, expected one of {', '.join(APPROXIMATIONS)}")

    @property
    def needs_damping(self) -> bool:
        """Factors may have no inverse without."""
        return True

    @checked
    def fit(
        self,
        model: nn.Module,
        loss_fn: Loss,
        data: Data,
        *,
        params: Params = None,
        fisher_type: str | None = None,
        diagonal: bool = True,
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> Factors:
        """Fit the factors of the mean loss.

        Under ``torch.distributed`` every process must make the same calls with the same data; the batches are divided
        among the processes, and all of them return the same factors.

        Args:
            model: in eval mode, or without layers such as BatchNorm in which samples influence each other.
            loss_fn: ``loss_fn(output, y)``: losses per sample, their mean or their sum.
            data: pairs (x, y): tensors, a Dataset or a DataLoader.
            params: names of the parameters, ``"last:K"``, or None for all that require gradients.
            fisher_type: None for the object's own.
            diagonal: measure the exact diagonal as well, which :class:`unlearnx.methods.SSD` and
                :class:`unlearnx.methods.FisherMasking` take; it costs about half a pass.
            batch_size: most samples per pass; the factors do not depend on it.
            generator: CPU generator for ``"mc"``.
            progress: show a progress bar (needs ``unlearnx[experiments]``).

        Raises:
            ValueError: an unknown option, empty data, a model in which samples influence each other, or covariances
                that are not finite: the message names the layer and the batch.
        """
        chosen = self if fisher_type is None else replace(self, fisher_type=fisher_type)
        return fit_factors(
            model,
            loss_fn,
            data,
            params=params,
            fisher_type=chosen.fisher_type,
            approximation=self.approximation,
            corrected=self._corrected,
            diagonal=diagonal,
            batch_size=batch_size,
            generator=generator,
            progress=progress,
        )

    def factors_for(self, operator: CurvatureRows) -> tuple[Factors, int]:
        """Factors of an operator's model and data, and the passes over the data that they took."""
        model, loss_fn, data = operator.problem()
        factors = self.fit(
            model,
            loss_fn,
            data,
            params=operator.names,
            diagonal=False,
            batch_size=operator.batch_size,
            generator=torch.Generator().manual_seed(self.seed),
        )
        return factors, factors.info["passes"]

    def _solve(self, system: System) -> Tensor | None:
        if not system.norms.any():
            return None
        solved = approximate_inverse(self, type(self).__name__, system)(system.v)
        images = system.products(solved)
        factors = (images * system.v).sum(1, keepdim=True) / images.square().sum(1, keepdim=True).clamp(min=1e-300)
        system.x = solved.mul_(factors)
        system.stopped = "solved with the factors"
        return system.relative_norms(images.mul_(factors).sub_(system.v))


@dataclass(kw_only=True)
class EKFAC(KFAC):
    """K-FAC with corrected eigenvalues: the true second moments of the gradients in the eigenbasis of K-FAC.

    One forward and backward pass over the data, or two where a quarter of the free memory does not hold what the layers
    saw in the first. Every sample's gradient is squared in that basis, without storing it. Of all matrices that are
    diagonal in the basis, the result is the nearest to the Fisher information.

    Args:
        fisher_type, approximation, tolerance, seed: as for :class:`KFAC`.

    Source: George et al., "Fast approximate natural gradient descent in a Kronecker-factored eigenbasis", NeurIPS 2018.

    Example:
        >>> model, x, y = nn.Linear(4, 3), torch.randn(50, 4), torch.arange(50) % 3
        >>> factors = EKFAC().fit(model, nn.functional.cross_entropy, (x, y), fisher_type="empirical")
        >>> fisher = fisher_diagonal(model, nn.functional.cross_entropy, (x, y))  # the same trace, exact
        >>> bool(abs(factors.trace() / sum(t.sum() for t in fisher.values()) - 1) < 1e-4)
        True
    """

    _corrected: ClassVar[bool] = True
