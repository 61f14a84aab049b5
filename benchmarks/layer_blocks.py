"""What a preconditioner that knows every layer by itself can do for conjugate gradients, on the poisoned VGG.

python -m benchmarks.layer_blocks [--samples N] [--damping D]

The system is that of the last six tensors: a linear layer of 512 units, ReLU, BatchNorm, a linear layer of ten, in
float64. The best such preconditioner has the exact blocks of the Gauss-Newton matrix, whose inverses follow from
Woodbury's formula: a block is ``J^T J`` with a row of J for each sample and class. Beside it EK-FAC, with the damping
of the system and with others.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.untuned.sources import Sources
from unlearnx.curvature import EKFAC, CurvatureOperator, FrozenPrefix, grad_difference
from unlearnx.models import vgg_cifar10

LAST_SIX = "last:6"
TOLERANCE, MOST = 1e-2, 200
FACTORS = (1, 10, 100)  # of the damping, in the preconditioner

Apply = Callable[[Tensor], Tensor]


def products_needed(multiply: Apply, precondition: Apply, v: Tensor) -> int:
    """Products until the residual is a hundredth of v's norm."""
    r = v.clone()
    z = precondition(r)
    d, rz = z.clone(), float(r @ z)
    for k in range(1, MOST + 1):
        image = multiply(d)
        r = r - rz / float(d @ image) * image
        if r.norm() <= TOLERANCE * v.norm():
            return k
        z = precondition(r)
        rz, before = float(r @ z), rz
        d = z + rz / before * d
    return MOST


def jacobians(head: nn.Module, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of each layer, rows (inputs, gradients of the half of the loss' curvature): J's row is their outer product.

    Inputs are (N, I) with a one for the bias, gradients (N, classes, O); of BatchNorm, O vectors of two inputs each.
    """
    first, norm, last = (m for m in head.modules() if isinstance(m, (nn.Linear, nn.BatchNorm1d)))
    ones = torch.ones(len(x), 1, dtype=x.dtype)
    hidden = first(x)
    deviation = (norm.running_var + norm.eps).sqrt()
    normal = (hidden.relu() - norm.running_mean) / deviation
    p = last(norm(hidden.relu())).softmax(1)
    half = (torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None]).mT / len(x) ** 0.5
    to_norm = half @ last.weight
    to_first = to_norm * (norm.weight / deviation) * (hidden > 0)[:, None]
    parts = [(torch.cat([x, ones], 1), to_first), (normal, to_norm), (torch.cat([norm(hidden.relu()), ones], 1), half)]
    return [(a.detach(), b.detach()) for a, b in parts]


def linear_inverse(inputs: Tensor, gradients: Tensor, damping: float) -> Apply:
    """Of the block of a linear layer, for a row of its weight and then its bias."""
    (n, k, o), i = gradients.shape, inputs.shape[1] - 1
    gram = torch.einsum("nko,mlo->nkml", gradients, gradients) * (inputs @ inputs.T)[:, None, :, None]
    factor = torch.linalg.cholesky(gram.reshape(n * k, n * k) + damping * torch.eye(n * k, dtype=gram.dtype))

    def solve(row: Tensor) -> Tensor:
        matrix = torch.cat([row[: o * i].view(o, i), row[o * i :, None]], 1)
        image = torch.einsum("no,nko->nk", inputs @ matrix.T, gradients)
        u = torch.cholesky_solve(image.reshape(-1, 1), factor).view_as(image)
        matrix = (matrix - torch.einsum("nk,nko->no", u, gradients).T @ inputs) / damping
        return torch.cat([matrix[:, :-1].flatten(), matrix[:, -1]])

    return solve


def exact_blocks(head: nn.Module, x: Tensor, damping: float) -> Apply:
    """The inverse of the layers' own blocks of the damped Gauss-Newton matrix, for rows of all parameters in order."""
    first, norm, last = jacobians(head, x)

    rows = torch.cat([(norm[1] * norm[0][:, None]).flatten(0, 1), norm[1].flatten(0, 1)], 1)
    of_norm = torch.linalg.inv(rows.T @ rows + damping * torch.eye(rows.shape[1], dtype=x.dtype))
    of_first, of_last = (linear_inverse(*part, damping) for part in (first, last))
    sizes = [first[0].shape[1] * first[1].shape[2], rows.shape[1], last[0].shape[1] * last[1].shape[2]]

    def apply(row: Tensor) -> Tensor:
        a, b, c = row.split(sizes)
        return torch.cat([of_first(a), of_norm @ b, of_last(c)])

    return apply


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=384)
    parser.add_argument("--damping", type=float, default=1e-2)
    given = parser.parse_args()
    sources = Sources()
    splits = sources.cifar10()
    images, labels = splits.train_x[: given.samples], splits.train_y[: given.samples]
    parts = FrozenPrefix(sources.weights(vgg_cifar10, "cifar10-vgg-poisoned.pt"), LAST_SIX, (images, labels))
    head = parts.head.double()
    x = parts.features((images, labels)).tensors[0].double()  # type: ignore[union-attr]
    operator = CurvatureOperator(head, F.cross_entropy, (x, labels), damping=given.damping, params=LAST_SIX)
    predicted = head(x).argmax(1)
    wrong = predicted != labels
    gradient = grad_difference(
        head, F.cross_entropy, (x[wrong], predicted[wrong]), (x[wrong], labels[wrong]), params=LAST_SIX
    )
    v = operator.rows.layout.rows("v", gradient)[0][0]

    def multiply(row: Tensor) -> Tensor:
        return operator.rows.products(row[None])[0]

    ways: dict[str, Apply] = {"none": lambda row: row, "exact blocks": exact_blocks(head, x.flatten(1), given.damping)}
    factors = EKFAC(fisher_type="exact").fit(head, F.cross_entropy, (x, labels), params=LAST_SIX, diagonal=False)

    def ekfac(damping: float, row: Tensor) -> Tensor:
        return factors.rows_applied(lambda values: 1 / (values + damping), row[None])[0]

    ways |= {f"EK-FAC, damping {c * given.damping:g}": partial(ekfac, c * given.damping) for c in FACTORS}
    print(f"largest eigenvalue {operator.top_eigenvalue():.3g}, of EK-FAC {factors.largest():.3g}")
    for name, precondition in ways.items():
        print(f"{name:24} {products_needed(multiply, precondition, v)} products", flush=True)


if __name__ == "__main__":
    main()
