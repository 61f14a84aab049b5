"""Executes the kernels for hardware that is not here on the CPU, against float64, under AddressSanitizer: CUDA's in
random fiber order, and those for the matrix units of other CPUs."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
KERNELS = sorted(f.stem.removesuffix("_kernels") for f in (CSRC / "cuda").glob("*_kernels.cu"))
BUGS = {
    "missing_barrier": "FAILED: out",
    "divergent_barrier": "barrier divergence",
    "shared_overflow": "heap-buffer-overflow",
    "global_overflow": "heap-buffer-overflow",
    "lane_outside_mask": "lane not in its own mask",
}

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Compiles tests/emulator/<name>.cpp with AddressSanitizer, once."""
    folder = tmp_path_factory.mktemp("emulator")

    def build(name, *options):
        program = folder / name
        if not program.exists():
            flags = ["-std=c++20", "-Og", "-g1", "-fsanitize=address", "-Wall", "-Wno-unknown-pragmas", *options]
            include = [f"-I{CSRC}", f"-I{HERE}"]
            subprocess.run(["g++", *flags, *include, str(HERE / f"{name}.cpp"), "-o", str(program)], check=True)
        return program

    return build


def run(program, argument):
    environment = dict(os.environ, ASAN_OPTIONS="detect_leaks=0")
    return subprocess.run([program, argument], capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.parametrize("seed", ["0", "10"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_equals_reference(compiled, kernel, seed):
    result = run(compiled(kernel), seed)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "ok"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="kernels of x86 processors")
def test_matrix_units_of_the_cpu(compiled):
    torch_headers = Path(torch.__file__).parent / "include"
    result = run(compiled("amx", f"-I{HERE / 'serial'}", f"-I{torch_headers}"), "0")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "ok"


@pytest.mark.parametrize(("bug", "message"), BUGS.items())
def test_planted_bug_is_found(compiled, bug, message):
    result = run(compiled("planted"), bug)
    assert result.returncode != 0
    assert message in result.stderr
