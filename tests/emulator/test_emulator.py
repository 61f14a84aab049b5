"""Executes the kernels for hardware that is not here on the CPU, against float64, under AddressSanitizer: CUDA's in
random fiber order, and those for the matrix units of other CPUs."""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
KERNELS = sorted(f.stem.removesuffix("_kernels") for f in (CSRC / "cuda").glob("*_kernels.cu"))
WATCH = "--param=asan-instrumentation-with-call-threshold=0"  # every access is a call, see shared_memory.h
BUGS = {
    "empty_grid": "launch of an empty grid",
    "too_large_grid": "launch of a too large grid",
    "no_threads": "launch of a bad number of threads",
    "too_many_threads": "launch of a bad number of threads",
    "too_much_shared_memory": "too much shared memory",
    "misaligned_load": "misaligned address",
    "misaligned_store": "misaligned address",
    "misaligned_copy": "misaligned copy",
    "misaligned_matrix": "misaligned matrix row",
    "divergent_barrier": "barrier divergence",
    "barrier_after_return": "a barrier after threads have ended",
    "different_barriers": "threads wait at different barriers",
    "uninitialised_read": "read of uninitialised shared memory",
    "uninitialised_atomic": "read of uninitialised shared memory",
    "copy_not_waited_for": "read of a copy that was not waited for",
    "missing_barrier": "race: |read of uninitialised",
    "overwritten_too_early": "race: ",
    "copied_over_too_early": "race: ",
    "two_writers": "race: two threads write",
    "atomic_and_not": "race: |read of uninitialised",
    "shared_overflow": "heap-buffer-overflow",
    "global_overflow": "heap-buffer-overflow",
    "lane_outside_mask": "lane not in its own mask",
    "lane_that_returned": "shuffle from a lane that is not there",
    "lane_not_named": "shuffle from a lane that is not there",
}

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Compiles tests/emulator/<name>.cpp with AddressSanitizer, once."""
    folder = tmp_path_factory.mktemp("emulator")

    def build(name, *options):
        program = folder / name
        if not program.exists():
            sanitizers = ["-fsanitize=address,alignment", "-fno-sanitize-recover=alignment", WATCH]
            flags = ["-std=c++20", "-Og", "-g1", *sanitizers, "-Wall", "-Wno-unknown-pragmas", *options]
            include = [f"-I{CSRC}", f"-I{HERE}"]
            subprocess.run(["g++", *flags, *include, str(HERE / f"{name}.cpp"), "-o", str(program)], check=True)
        return program

    return build


def run(program, *arguments):
    environment = dict(os.environ, ASAN_OPTIONS="detect_leaks=0")
    return subprocess.run([program, *arguments], capture_output=True, text=True, env=environment, timeout=300)


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
    assert re.search(message, result.stderr), result.stderr


def test_without_a_bug_nothing_dies(compiled):
    result = run(compiled("planted"))
    assert result.returncode == 0, result.stderr
