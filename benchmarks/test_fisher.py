"""Fisher diagonals and per-sample differences against every other way to them, in multiples of forward+backward."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from benchmarks.fisher_cases import available, build, forward_backward
from benchmarks.units import UNIT, in_units
from unlearnx.curvature import fisher_diagonal, grad_difference, per_sample_grad_difference


@pytest.mark.benchmark(group="fisher_diagonal")
@pytest.mark.parametrize(
    ("name", "n"),
    [
        pytest.param("vgg", 64, marks=pytest.mark.headline),
        ("vgg", 256),
        pytest.param("char-lstm", 64, marks=pytest.mark.headline),
        ("char-lstm", 256),
        pytest.param("vit", 64, marks=pytest.mark.headline),
        ("vit", 256),
        ("logistic", 4096),
    ],
)
def test_fisher(compare, benchmark, device, name, n):
    model, x, y = build(name, n, device)
    rivals, refused = available(model, x, y)
    if n == 256:  # those that did best at 64; the others take minutes
        rivals = {rival: run for rival, run in rivals.items() if rival in ("batch size 1", "vmap(grad), 16", "Opacus")}
    ratios = compare.run(
        lambda: fisher_diagonal(model, F.cross_entropy, (x, y), batch_size=n),
        {UNIT: forward_backward(model, x, y), **rivals},
        rounds=3 if name == "vgg" else 5,
        claims=dict.fromkeys(rivals, 1.0),
        refused=refused,
    )
    in_units(benchmark, ratios)


@pytest.mark.benchmark(group="fisher_diagonal")
@pytest.mark.parametrize("name", ["vgg", "char-lstm", "vit", "logistic"])
def test_fisher_of_many_batches(compare, benchmark, device, name):
    """Eight batches: what checking the rules on the first samples costs is spread over them."""
    n = {"vgg": 64, "char-lstm": 256, "vit": 256, "logistic": 4096}[name]
    model, x, y = build(name, 8 * n, device)
    steps = [forward_backward(model, a, b) for a, b in zip(x.split(n), y.split(n), strict=True)]
    ratios = compare.run(
        lambda: fisher_diagonal(model, F.cross_entropy, (x, y), batch_size=n),
        {UNIT: lambda: [step() for step in steps]},
        rounds=5,
    )
    in_units(benchmark, ratios)


@pytest.mark.benchmark(group="fisher_diagonal")
def test_fisher_bfloat16(compare, benchmark, device):
    if device == "cpu" and not (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        pytest.skip("this processor has no units for bfloat16; float32 is used in its place")
    model, x, y = build("vgg", 64, device)
    ratios = compare.run(
        lambda: fisher_diagonal(model, F.cross_entropy, (x, y), batch_size=64, compute_dtype=torch.bfloat16),
        {UNIT: forward_backward(model, x, y)},
        rounds=5,
    )
    in_units(benchmark, ratios)


@pytest.mark.benchmark(group="grad_difference")
@pytest.mark.parametrize("what", ["labels", "labels, every sample", "features, every sample"])
def test_difference(compare, benchmark, device, what):
    model, x, y = build("vgg", 64, device)
    new = (x, (y + 1) % 10) if what.startswith("labels") else (x + 0.1 * torch.randn_like(x), y)
    if "every sample" in what:
        ours = lambda: per_sample_grad_difference(model, F.cross_entropy, (x, y), new)  # noqa: E731
    else:
        ours = lambda: grad_difference(model, F.cross_entropy, (x, y), new)  # noqa: E731
    both = forward_backward(model, x, y), forward_backward(model, *new)
    others = {UNIT: both[0], "twice": lambda: [run() for run in both]}
    ratios = compare.run(ours, others, rounds=5)
    in_units(benchmark, ratios)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.benchmark(group="memory")
@pytest.mark.parametrize(("name", "n"), [("vgg", 256), ("char-lstm", 256), ("vit", 256)])
def test_peak_memory(benchmark, claim, name, n):
    """MiB above the model's own forward and backward pass, each way in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def peak(method):
        command = [sys.executable, "-m", "benchmarks.peak_memory", name, str(n), method]
        run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        return [int(v) for v in run.stdout.split()] if run.returncode == 0 else None

    results = {method: peak(method) for method in ("ours", "vmap(grad), 4", "vmap(grad), 64", "Opacus", "nngeometry")}
    benchmark.extra_info["MiB"] = {method: r and r[1] for method, r in results.items()}
    benchmark.extra_info["forward+backward MiB"] = results["ours"][0]
    benchmark.pedantic(lambda: None, rounds=1)
    claim(results["ours"][1] <= 64, "ours needs 64 MiB more than forward and backward or less")
