"""One iteration of LiSSA, in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unlearnx.ops._call import register_fake, tensor_list
from unlearnx.ops._writes import call_writing, writes

__all__ = ["lissa_step_"]


def lissa_step_(h: Sequence[Tensor], v: Sequence[Tensor], hv: Sequence[Tensor], damping: float, scale: float) -> Tensor:
    """Set ``h`` to ``v + (1 - damping) * h - hv / scale``, in place and in one pass over memory.

    The fixed point is ``h = scale * (H + damping * scale * I)^-1 v``, with ``hv = H h``: in this form ``damping``
    acts as a Tikhonov term of size ``damping * scale``.

    Args:
        h: running estimate, a list of tensors.
        v: right-hand side, shaped like ``h``.
        hv: curvature product with ``h``, shaped like ``h``.
        damping: >= 0, without unit.
        scale: > 0, in units of the curvature.

    Returns:
        The L1 norm of the change of ``h``, a 0-d tensor: float64 if a tensor of ``h`` is, else float32. Reading
        it is the only synchronisation.

    Raises:
        TypeError: a tensor is not float32, float64, float16 or bfloat16.
        ValueError: lengths, shapes or devices of the lists differ, ``damping`` is negative, or ``scale`` is not
            positive.

    Source: Agarwal, Bullins and Hazan, "Second-Order Stochastic Optimization for Machine Learning in Linear Time",
    JMLR 2017; in this form Warnecke et al., "Machine Unlearning of Features and Labels", NDSS 2023.

    Example:
        >>> h, v = torch.zeros(2), torch.tensor([1.0, 2.0])
        >>> for _ in range(60):  # solves (2 I) x = v, scale 4: h = 4 x
        ...     change = lissa_step_([h], [v], [2 * h], damping=0.0, scale=4.0)
        >>> h, change < 1e-6
        (tensor([2., 4.]), tensor(True))
    """
    return call_writing(
        torch.ops.unlearnx.lissa_step_,
        tensor_list("lissa_step_", "h", h),
        tensor_list("lissa_step_", "v", v),
        tensor_list("lissa_step_", "hv", hv),
        damping,
        scale,
    )


writes("lissa_step_")


@register_fake("lissa_step_")
def _(h, v, hv, damping, scale):
    wide = any(t.dtype == torch.float64 for t in h)
    return torch.empty((), dtype=torch.float64 if wide else torch.float32, device=h[0].device if h else "cpu")
