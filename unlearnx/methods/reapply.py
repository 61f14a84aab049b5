"""What one method did to a model, done again to the model as it is after further training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from unlearnx._vectors import Vector
from unlearnx.methods.base import Method, Work
from unlearnx.methods.chosen_parameters import ChosenParameters
from unlearnx.methods.step_size import check_size


@dataclass
class Reapply(Method):
    """``theta <- theta + factor * update``, with the update that a method once made.

    A model that is trained further may learn again what it has forgotten; the old update makes it forget again, without
    a gradient.

    Args:
        update: the change of each parameter, which may be kept as a file; see :meth:`of`.
        factor: how much of it; ``"auto"`` finds the least that forgets.

    Raises:
        ValueError: the model has no such parameters, or ``factor`` is not above zero.

    Source: McKinney et al., "Gauss-Newton Unlearning for the LLM Era", arXiv 2602.10568, 2026.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> model, request = nn.Linear(8, 3), Request.remove((x, y), range(6))
        >>> reapply = Reapply.of(model, KFADE(step=1.0)(model, request).model)
        >>> trained_on = FineTune(epochs=1)(model, request).model
        >>> reapply(trained_on, request).info["factor"] > 0
        True
    """

    _strength: ClassVar[str | None] = "factor"

    update: Vector
    factor: float | str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("factor", self.factor)

    @classmethod
    def of(cls, before: nn.Module, after: nn.Module, **settings: Any) -> Reapply:
        """The update that made one model from another; `settings` are other arguments."""
        old, new = (dict(model.named_parameters()) for model in (before, after))
        if old.keys() != new.keys() or any(old[name].shape != new[name].shape for name in old):
            raise ValueError("after: has other parameters than before, expected the same names and shapes")
        changes = {name: (new[name] - old[name]).detach() for name in old}
        return cls({name: t for name, t in changes.items() if t.any()}, **settings)

    def _names(self, model: nn.Module) -> list[str]:
        own = dict(model.named_parameters())
        for name, t in self.update.items():
            if name not in own or own[name].shape != t.shape:
                raise ValueError(f"update: has {name!r} of shape {list(t.shape)}, which the model has not")
        chosen = list(own) if self.params is None else super()._names(model)
        names = [name for name in chosen if name in self.update]
        if not names:
            raise ValueError("update: changes none of the chosen parameters, expected the change of at least one")
        return names

    def _apply(self, work: Work, info: dict[str, Any]) -> None:
        parameters = ChosenParameters(work.model, work.names).params
        down = {name: -self.update[name].to(p) for name, p in parameters.items()}
        work.subtract(down, check_size("factor", self.factor), info)
