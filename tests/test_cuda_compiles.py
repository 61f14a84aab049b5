"""Compiles every CUDA kernel with nvcc; no GPU is needed for that."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[1] / "csrc"


def find_nvcc():
    """nvcc of the path, or the one that `pip install cuda-toolkit[nvcc,...]` lays into site-packages."""
    nvidia = importlib.util.find_spec("nvidia")
    folders = list(nvidia.submodule_search_locations) if nvidia else []
    found = [shutil.which("nvcc")] + [str(f) for folder in folders for f in Path(folder).glob("cu*/bin/nvcc")]
    return next(filter(None, found), None)


@pytest.mark.nvcc
@pytest.mark.skipif(find_nvcc() is None, reason="nvcc not found; `make nvcc` installs it from PyPI")
@pytest.mark.parametrize("source", sorted((CSRC / "cuda").glob("*_kernels.cu")), ids=lambda f: f.stem)
def test_kernel_compiles(source, tmp_path):
    nvcc = find_nvcc()
    toolkit = Path(nvcc).resolve().parents[1]
    architectures = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in (80, 90)]
    command = [nvcc, "-std=c++17", "-O3", "-Werror=all-warnings", f"-I{CSRC}", *architectures]
    result = subprocess.run(
        [*command, "-c", str(source), "-o", str(tmp_path / "kernel.o")],
        capture_output=True,
        text=True,
        env=dict(os.environ, CUDA_HOME=str(toolkit)),
    )
    assert result.returncode == 0, result.stderr
