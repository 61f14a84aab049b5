"""Task arithmetic: away from the weights that further training on the forget set leads to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from unlearnx._checks import check_at_least_one
from unlearnx.methods.base import Work
from unlearnx.methods.chosen_parameters import ChosenParameters
from unlearnx.methods.step_size import check_size
from unlearnx.methods.training_method import TrainedMethod


@dataclass
class TaskVector(TrainedMethod):
    """``theta <- theta - factor * (theta_forget - theta)``, where theta_forget is trained further on the forget set.

    Args:
        factor: how much of the task vector is taken off; ``"auto"`` finds the least that forgets.
        epochs: passes over the forget set.
        lr: peak learning rate.

    Raises:
        ValueError: a number is out of range.

    Source: Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023, section 3.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> model, request = nn.Linear(8, 3), Request.remove((x, y), range(6))
        >>> near, far = (TaskVector(factor=factor)(model, request).model.weight for factor in (1.0, 2.0))
        >>> torch.allclose(far - model.weight, 2 * (near - model.weight), atol=1e-6)
        True
    """

    _strength: ClassVar[str | None] = "factor"

    factor: float | str = "auto"
    epochs: int = 3
    lr: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(epochs=self.epochs)
        check_size("factor", self.factor)

    def _fit(self, work: Work, info: dict[str, Any]) -> None:
        parameters = ChosenParameters(work.model, work.names)
        start = parameters.read()
        self._train(work, info, self.epochs, self.lr, data=work.request.trained_forget_set, eval_mode=True)
        task = {name: end - start[name] for name, end in parameters.read().items()}
        parameters.write(start, {}, 0.0)
        work.subtract(task, check_size("factor", self.factor), info)
