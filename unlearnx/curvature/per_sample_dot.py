"""Inner products of per-sample gradients with given directions."""

from __future__ import annotations

from collections import Counter

from torch import Tensor, nn

from unlearnx import _distributed as distributed
from unlearnx._arguments import checked
from unlearnx._batches import Nest, count
from unlearnx._calls import check_call
from unlearnx._checks import Params, check_finite, model_device, select_params
from unlearnx._data import Data, check_in_order, check_same_in_every_process, shared_batches, size
from unlearnx._losses import Loss, SampleLoss
from unlearnx._vectors import Layout, Vector
from unlearnx.curvature.contributions import Contribution
from unlearnx.curvature.prefix import FrozenPrefix
from unlearnx.curvature.samples import SampleGradients
from unlearnx.curvature.targets import Targets


@checked
def per_sample_grad_dot(
    model: nn.Module,
    loss_fn: Loss,
    data: Data,
    v: Vector,
    *,
    params: Params = None,
    batch_size: int | None = None,
) -> Tensor:
    """Each sample's ``<grad loss_i, v>``, the derivative of its loss along v, without storing all gradients.

    Fused kernels compute each layer's part from its inputs x and output gradients dy as ``<dy, layer(x; v)>``. One
    direction costs a forward and a backward pass without weight gradients. All directions share these passes; each
    further direction costs about a third of one. On the CPU, where samples have many positions, per-sample gradients
    are stored a few at a time and shared by the directions. Any model is supported, and processes share the work, as
    in :func:`unlearnx.curvature.fisher_diagonal`.

    Args:
        model: in eval mode, or without layers that mix samples.
        loss_fn: ``loss_fn(output, y)``: losses per sample, their mean or their sum; all give the same result.
        data: N samples (x, y): a pair of tensors, a Dataset, or a DataLoader that keeps their order.
        v: a tensor for each parameter, shaped like it, or K directions stacked along a first dimension.
        params: names of the parameters that `v` has, ``"last:K"``, or None for all that require gradients. The part of
            the model before them runs without gradients.
        batch_size: most samples per pass; the result does not depend on it.

    Returns:
        (N,), or (K, N) for K directions, in the order of the data, in float32 (float64 where a parameter is).

    Raises:
        ValueError: empty data, a DataLoader that shuffles, directions that are not shaped like the parameters, samples
            that interact, or a product that is not finite.

    Example:
        >>> model, x, y = nn.Linear(4, 3), torch.randn(20, 4), torch.arange(20) % 3
        >>> v = {name: torch.randn(2, *p.shape) for name, p in model.named_parameters()}  # two directions
        >>> per_sample_grad_dot(model, nn.functional.cross_entropy, (x, y), v).shape
        torch.Size([2, 20])
    """
    check_call(model, loss_fn, data)
    names = select_params(model, params)
    check_same_in_every_process("data", data)
    check_in_order("data", data)
    own = dict(model.named_parameters())
    layout = Layout({name: own[name] for name in names})
    rows, single = layout.rows("v", v)
    directions = layout.vector(rows.detach(), False, wide=True)
    products = rows.new_zeros(len(rows), size(data))
    frozen_prefix = FrozenPrefix(model, names, data)
    loss, device = SampleLoss(loss_fn), model_device(model)
    gradients: SampleGradients | None = None
    with distributed.failing_together(device):
        for position, x, y in shared_batches(data, batch_size, device):
            x = frozen_prefix(x)
            if gradients is None:
                gradients = SampleGradients(frozen_prefix.head, loss, names, x, None)
            for part_x, part_y in gradients.split(x, y):
                _add_products(gradients, part_x, part_y, directions, products[:, position : position + count(part_x)])
                position += count(part_x)
    distributed.all_reduce_([products])
    check_finite("products", [("v", products)])
    return products[0] if single else products


def _add_products(
    gradients: SampleGradients, x: Nest, y: Nest, directions: dict[str, Tensor], products: Tensor
) -> None:
    """Add the inner products of one pass, parameter by parameter, to `products` (K, samples of the pass)."""
    seen: Counter[str] = Counter()  # samples so far, by parameter: they arrive in order, at once or in several parts

    def on_contribution(name: str, contribution: Contribution, _: Tensor | None) -> None:
        dots = contribution.dots(directions[name])
        products[:, seen[name] : seen[name] + dots.shape[1]] += dots
        seen[name] += dots.shape[1]

    gradients.run(x, lambda _: [Targets(y)], on_contribution)
