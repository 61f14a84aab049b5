#!/usr/bin/env bash
# Builds the extension for the GPU of this machine, runs every CUDA test, then the benchmarks.
#   benchmarks/gpu.sh OUT     writes build.log, tests.log and benchmarks.json to the folder OUT
# Uses the Python on the path, which has to hold a CUDA torch, setuptools, ninja, pytest and pytest-benchmark.
set -euo pipefail
out=$(mkdir -p "${1:?folder for the results}" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
arch=$("$python" -c 'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))')
export UNLEARNX_CUDA=1 TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-$arch}"
"$python" setup.py build_ext --inplace >"$out/build.log" 2>&1
export PYTHONPATH=$PWD
"$python" -m pytest -m "cuda and not slow" tests 2>&1 | tee "$out/tests.log"
"$python" -m pytest benchmarks -k cuda --benchmark-json="$out/benchmarks.json" 2>&1 | tee "$out/benchmarks.log"
