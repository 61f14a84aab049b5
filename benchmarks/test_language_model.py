"""SmolLM2-135M on 16 texts of 64 tokens in float32, in multiples of one forward and backward pass."""

import subprocess
import sys

import pytest
import torch

from benchmarks.smollm2 import adapted, load, one_by_one, ours, step
from benchmarks.units import UNIT, in_units
from unlearnx.curvature import CurvatureOperator
from unlearnx.losses import causal_lm

LOOP, REPEATED = "batch size 1", "ours, repeated"
ROUNDS = 3
MIB_BEYOND_PARAMETERS = 512  # of memory above the model's own pass and one copy of its parameters


@pytest.fixture(scope="module")
def problem():
    return load()


def _claim_most(claim, multiples, limits):
    for name, most in limits.items():
        claim(multiples[name] <= most, f"{name}: {most:g} passes or less")


@pytest.mark.benchmark(group="SmolLM2")
def test_fisher_of_all_parameters(compare, benchmark, claim, problem):
    model, x = problem
    ratios = compare.run(
        lambda: ours(model, x),
        {UNIT: lambda: step(model, x), LOOP: lambda: one_by_one(model, x)},
        rounds=ROUNDS,
        warmups=1,
        claims={LOOP: 1.0},
    )
    _claim_most(claim, in_units(benchmark, ratios), {"ours": 1.3})
    _claim_exact(benchmark, claim, model, x)


@pytest.mark.benchmark(group="SmolLM2")
def test_fisher_of_adapters(compare, benchmark, claim, problem):
    """Of rank 8: the unit is the adapters' training step."""
    model, x = problem
    with adapted(model, rank=8):
        ratios = compare.run(lambda: ours(model, x), {UNIT: lambda: step(model, x)}, rounds=ROUNDS, warmups=1)
        _claim_most(claim, in_units(benchmark, ratios), {"ours": 1.15})
        _claim_exact(benchmark, claim, model, x)


def _claim_exact(benchmark, claim, model, x):
    got, expected = ours(model, x), one_by_one(model, x)
    error = max(float((got[name] - t).norm() / t.norm()) for name, t in expected.items())
    benchmark.extra_info["error"] = error
    claim(error <= 1e-5, "every parameter's diagonal is that of the loop up to 1e-5")


@pytest.mark.benchmark(group="SmolLM2")
@pytest.mark.parametrize(("kind", "fresh", "kept"), [("ggn", 2.0, 1.5), ("hessian", 3.2, 2.3)])
def test_product(compare, benchmark, claim, problem, kind, fresh, kept):
    model, x = problem
    data = ({"input_ids": x}, x)
    v = {name: torch.randn_like(p) for name, p in model.named_parameters()}

    def operator():
        return CurvatureOperator(model, causal_lm, data, kind=kind, batch_size=len(x))

    again = operator()
    ratios = compare.run(
        lambda: operator().matvec(v),
        {REPEATED: lambda: again.matvec(v), UNIT: lambda: step(model, x)},
        rounds=ROUNDS,
        warmups=1,
    )
    _claim_most(claim, in_units(benchmark, ratios), {"ours": fresh, REPEATED: kept})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.benchmark(group="memory")
def test_peak_memory(benchmark, claim, problem):
    """MiB above the model's own forward and backward pass, in a process of its own."""
    model, _ = problem
    run = subprocess.run([sys.executable, "-m", "benchmarks.smollm2"], capture_output=True, text=True, check=True)
    own, above = (int(v) for v in run.stdout.split())
    parameters = sum(p.nbytes for p in model.parameters()) / 2**20
    benchmark.extra_info.update({"forward+backward MiB": own, "MiB": {"ours": above}})
    benchmark.pedantic(lambda: None, rounds=1)
    most = round(parameters + MIB_BEYOND_PARAMETERS)
    claim(above <= most, f"ours needs {most} MiB more than forward and backward or less")
