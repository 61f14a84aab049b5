"""Solvers with no number tuned by hand, on the poisoned VGG: what each reaches, and in what time."""

import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import pytest
import torch
from torch.nn import functional as F

from unlearnx.curvature import ConjugateGradient, CurvatureOperator, LiSSA, NystromPCG, grad_difference
from unlearnx.data import load_cifar10
from unlearnx.models import vgg_cifar10

SAMPLES = 4096
SOLVERS = {
    "ConjugateGradient": ConjugateGradient(),
    "NystromPCG": NystromPCG(),
    "LiSSA, all samples": LiSSA(damping=0.0, batch_size=None),
    "LiSSA, batches of 1,024": LiSSA(damping=0.0),
}


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """The network in eval mode, and images with their true labels."""
    folder = os.environ.get("UNLEARNX_DATA")
    if not folder:
        pytest.skip("UNLEARNX_DATA is not set: it names the folder with the CIFAR-10 files")
    checkpoint = Path(folder).parent / "models" / "cifar10-vgg-poisoned.pt"
    if not checkpoint.exists():
        pytest.skip(f"{checkpoint.name} does not lie beside UNLEARNX_DATA")
    model = vgg_cifar10().eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    images = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, Path(folder) / "load.py", "cifar10", images], check=True)
    splits = load_cifar10(images, limit=SAMPLES)
    return model, (splits.train_x, splits.train_y)


@pytest.mark.benchmark(group="solvers")
@pytest.mark.parametrize("damping", [0.1, 0.01])
def test_poisoned_vgg(benchmark, claim, poisoned, damping):
    """The last six parameters; the right-hand side is that of the points which the model gets wrong."""
    model, data = poisoned
    operator = CurvatureOperator(
        model, F.cross_entropy, data, kind="ggn", damping=damping, params="last:6", batch_size=1024
    )
    with torch.no_grad():
        predicted = torch.cat([model(x).argmax(1) for x in data[0].split(256)])
    wrong = (predicted != data[1]).nonzero().flatten()
    x, y = (t[wrong] for t in data)
    difference = grad_difference(model, F.cross_entropy, (x, predicted[wrong]), (x, y), params="last:6")
    v = {name: t / SAMPLES for name, t in difference.items()}
    results = {"largest eigenvalue": operator.top_eigenvalue(generator=torch.Generator().manual_seed(0))}
    for name, solver in SOLVERS.items():
        start = perf_counter()
        solution = solver.solve(operator, v)
        results[name] = dict(
            seconds=perf_counter() - start,
            residual=solution.residual,
            products=solution.iterations,
            stopped=solution.stopped,
            converged=solution.converged,
        )
        assert solution.converged == (solution.residual <= 1e-2)
    benchmark.extra_info.update(results)
    for name in ("ConjugateGradient", "NystromPCG"):
        claim(results[name]["converged"], f"{name} converges with no number tuned")
    benchmark.pedantic(lambda: ConjugateGradient().solve(operator, v), rounds=1)
