"""Two processes that share the work have the results of one; each of them runs this file as a script."""

import os
import subprocess
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from tests.curvature.zoo import build
from tests.helpers import product_of
from unlearnx.curvature import (
    EKFAC,
    KFAC,
    ConjugateGradient,
    CurvatureOperator,
    LiSSA,
    NystromPCG,
    fisher_diagonal,
    grad_difference,
    per_sample_grad_dot,
)
from unlearnx.curvature.fisher import FISHER_TYPES

PROCESSES = 2

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch.distributed with gloo"
)


class Counted(torch.utils.data.Dataset):
    """A dataset that counts its reads; reading the sample `broken` raises."""

    def __init__(self, x, y, broken=None):
        self.x, self.y, self.broken, self.reads = x, y, broken, 0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        if i == self.broken:
            raise OSError("cannot be read")
        self.reads += 1
        return self.x[i], self.y[i]


def seeded():
    return torch.Generator().manual_seed(0)


def study(name="mlp"):
    torch.manual_seed(0)
    return build(name)


# Nine samples are five batches of two, so that one process has more of them; by default they are a single batch.
DATA = {
    "tensors": lambda x, y: (x, y),
    "dataset": Counted,
    "loader": lambda x, y: DataLoader(Counted(x, y), batch_sampler=[[0, 1, 2, 3], [4], [5, 6, 7], [8]]),
}


def fisher(fisher_type, data, batch_size, params=None):
    model, x, y = study("cnn")
    options = dict(fisher_type=fisher_type, batch_size=batch_size, params=params, generator=seeded())
    return fisher_diagonal(model, F.cross_entropy, DATA[data](x, y), **options)


def factors(kind, fisher_type, data, batch_size, params=None):
    model, x, y = study("cnn")
    options = dict(fisher_type=fisher_type, batch_size=batch_size, params=params, generator=seeded())
    fitted = kind().fit(model, F.cross_entropy, DATA[data](x, y), **options)
    return {"diagonal": fitted.diagonal(), "trace": torch.tensor(fitted.trace(), dtype=torch.float64)}


def difference(changed, data, batch_size, params=None):
    model, x, y = study("cnn")
    new = {"nothing": None, "labels": (x, 2 - y), "features": (x.flip(0), y)}[changed]
    new = None if new is None else DATA[data](*new)
    return grad_difference(model, F.cross_entropy, DATA[data](x, y), new, batch_size=batch_size, params=params)


def products(data, batch_size, params=None):
    model, x, y = study("cnn")
    names = [name for name, _ in model.named_parameters()][-4 if params else 0 :]
    v = {name: torch.randn(2, *model.get_parameter(name).shape, dtype=torch.float64) for name in names}
    return per_sample_grad_dot(model, F.cross_entropy, DATA[data](x, y), v, batch_size=batch_size, params=params)


def problem(kind="ggn", **options):
    model, x, y = study()
    v = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    return CurvatureOperator(model, F.cross_entropy, (x, y), kind=kind, damping=0.3, **options), v


def stacked(v, n):
    return {name: torch.stack([t.flatten().roll(k).view(t.shape) for k in range(n)]) for name, t in v.items()}


def matvec(kind, batch_size):
    operator, v = problem(kind, batch_size=batch_size)
    first = operator.matvec(v)
    return {"fresh": first, "kept": operator.matvec(v)}


def matmat(kind):
    operator, v = problem(kind)
    return operator.matmat(stacked(v, 3))


def frozen_prefix(kind):
    model, x, y = study("cnn")
    operator = CurvatureOperator(model, F.cross_entropy, Counted(x, y), kind=kind, params="last:4")
    return operator.matvec({name: torch.ones_like(model.get_parameter(name)) for name in operator.names})


def softmax_head():
    """Softmax regression, which has its closed form in a single process only."""
    model, x, y = study()
    operator = CurvatureOperator(model, F.cross_entropy, (x, y), params="last:2", batch_size=2)
    v = {name: torch.ones_like(model.get_parameter(name)) for name in operator.names}
    solution = LiSSA(scale=1.0, batch_size=4, recursion_depth=30).solve(operator, v)
    return {"product": operator.matvec(v), "solution": solution.x, "iterations": solution.iterations}


def numbers(kind):
    operator, _ = problem(kind)
    top = operator.top_eigenvalue(tolerance=1e-4, generator=seeded())
    return torch.tensor([top, operator.trace(samples=4, generator=seeded())], dtype=torch.float64)


def minibatches(kind, batch_size):
    operator, v = problem(kind)
    parts = operator.rows.minibatches(batch_size, seeded())
    products = [product_of(next(parts), stacked(v, 2)) for _ in range(-(-9 // batch_size) + 1)]
    # Vectors in another memory order, in which a process without samples must not sum its zeros.
    rows = torch.randn(operator.rows.layout.size, 2, dtype=torch.float64).T
    return {"products": products, "rows": next(parts).products(rows)}


def solve(solver, columns):
    operator, v = problem()
    solution = solver.solve(operator, stacked(v, columns) if columns else v)
    return {"x": solution.x, "residual": torch.as_tensor(solution.residual), "iterations": solution.iterations}


SOLVERS = {
    "conjugate gradients": ConjugateGradient(tolerance=1e-6),
    "preconditioned": NystromPCG(rank=5, tolerance=1e-6),
    "LiSSA": LiSSA(batch_size=4, recursion_depth=30),
    "LiSSA on all data": LiSSA(batch_size=None),
}

CHECKS = {
    **{
        f"fisher {kind} of {data} by {size}": partial(fisher, kind, data, size)
        for kind in FISHER_TYPES
        for data in DATA
        for size in (2, None)
    },
    **{f"fisher {kind} behind a prefix": partial(fisher, kind, "dataset", 2, "last:4") for kind in FISHER_TYPES},
    **{
        f"{kind.__name__} {fisher_type} of {data} by {size}": partial(factors, kind, fisher_type, data, size)
        for kind, fisher_type in ((KFAC, "exact"), (EKFAC, "mc"))
        for data in DATA
        for size in (2, None)
    },
    "EKFAC behind a prefix": partial(factors, EKFAC, "empirical", "dataset", 2, "last:4"),
    **{
        f"difference of {changed} in {data} by {size}": partial(difference, changed, data, size)
        for changed in ("nothing", "labels", "features")
        for data in DATA
        for size in (2, None)
    },
    "difference behind a prefix": partial(difference, "features", "dataset", 2, "last:4"),
    **{f"products of {d} by {n}": partial(products, d, n) for d in ("tensors", "dataset") for n in (2, None)},
    "products behind a prefix": partial(products, "dataset", 2, "last:4"),
    **{f"matvec {kind} by {size}": partial(matvec, kind, size) for kind in ("ggn", "hessian") for size in (2, None)},
    **{f"matmat {kind}": partial(matmat, kind) for kind in ("ggn", "hessian")},
    **{f"frozen prefix {kind}": partial(frozen_prefix, kind) for kind in ("ggn", "hessian")},
    "softmax head": softmax_head,
    **{f"spectrum and trace {kind}": partial(numbers, kind) for kind in ("ggn", "hessian")},
    **{
        f"minibatches {kind} by {size}": partial(minibatches, kind, size)
        for kind in ("ggn", "hessian")
        for size in (4, 1)
    },
    **{f"{name}, {k or 1} at once": partial(solve, s, k) for name, s in SOLVERS.items() for k in (0, 3)},
}


def without_generator():
    """Results that use random numbers, in processes whose generators differ."""
    operator, _ = problem()
    model, x, y = study()
    torch.manual_seed(dist.get_rank())
    diagonal = fisher_diagonal(model, F.cross_entropy, (x, y), fisher_type="mc", batch_size=2)
    order = next(operator.rows.minibatches(4))._order
    return {"diagonal": diagonal, "order": order, "numbers": [operator.trace(samples=2), operator.top_eigenvalue()]}


def reads():
    """How many of nine samples this process reads, for the Fisher diagonal, the gradient difference and a product."""
    model, x, y = study()
    counts = []
    for engine in (fisher_diagonal, grad_difference):
        data = Counted(x, y)
        engine(model, F.cross_entropy, data, batch_size=2)
        counts.append(data.reads)
    data = Counted(x, y)
    operator = CurvatureOperator(model, F.cross_entropy, data)
    operator.matvec({name: torch.ones_like(p) for name, p in model.named_parameters()})
    return [*counts, data.reads]


def message(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def errors():
    model, x, y = study()
    shuffled = DataLoader(TensorDataset(x, y), shuffle=True)
    handed_out = DataLoader(TensorDataset(x, y), sampler=DistributedSampler(TensorDataset(x, y)))
    return {
        "shuffled": message(lambda: fisher_diagonal(model, F.cross_entropy, shuffled)),
        "handed out": message(lambda: grad_difference(model, F.cross_entropy, handed_out)),
        "prefix": message(lambda: CurvatureOperator(model, F.cross_entropy, handed_out, params="last:2")),
        "fourth sample": message(lambda: fisher_diagonal(model, F.cross_entropy, Counted(x, y, 3), batch_size=2)),
        "labels": message(lambda: fisher_diagonal(model, F.cross_entropy, (x, x), fisher_type="mc")),
        "not finite": message(lambda: grad_difference(model, F.cross_entropy, (x.log(), y), batch_size=2)),
    }


def main(rank, folder):
    alone = {name: check() for name, check in CHECKS.items()}
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=60),
    )
    together = {name: check() for name, check in CHECKS.items()}
    extra = {"errors": errors(), "reads": reads(), "random": without_generator()}
    dist.destroy_process_group()
    torch.save({"alone": alone, "together": together, **extra}, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The results of each process."""
    folder = tmp_path_factory.mktemp("processes")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve())]
    running = [
        subprocess.Popen(
            [*command, str(rank), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(PROCESSES)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    for process, output in zip(running, outputs, strict=True):
        assert process.returncode == 0, output
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", CHECKS)
def test_equal_to_one_process(reports, name):
    first, second = reports
    torch.testing.assert_close(first["together"][name], first["alone"][name], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(second["together"][name], first["together"][name], rtol=0, atol=0)


def test_random_numbers_are_agreed_on(reports):
    first, second = (report["random"] for report in reports)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_work_is_shared(reports):
    assert [report["reads"] for report in reports] == [[8, 8, 7], [7, 7, 8]]  # three each to try the model on


def test_errors_reach_all(reports):
    """No process is left waiting for one that failed."""
    first, second = (report["errors"] for report in reports)
    refused = {
        "shuffled": "is a DataLoader with a RandomSampler, which may give every process other samples",
        "handed out": "is a DataLoader with a DistributedSampler, which may give every process other samples",
        "prefix": "is a DataLoader with DistributedSampler and drop_last=False, expected one that visits each sample",
    }
    for name, message in refused.items():
        assert message in first[name]
        assert first[name] == second[name]
    elsewhere = "RuntimeError: the work failed in another process; see the error of that process"
    assert (first["fourth sample"], second["fourth sample"]) == (elsewhere, "OSError: cannot be read")
    assert "data: expected labels that loss_fn takes, got y of torch.float64" in first["labels"]
    assert first["labels"] == second["labels"]  # each tries the model on a few samples before the work is shared
    assert "values are NaN or infinite" in first["not finite"]
    assert first["not finite"] == second["not finite"]


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
