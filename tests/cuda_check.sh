#!/usr/bin/env bash
# Builds the CUDA extension against torch 2.11 (cu130) in a throw-away environment and runs its CPU tests there.
# Needs nvcc 13 on the path, or takes it from PyPI; needs no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git ls-files -co --exclude-standard | tar -cf - -T - | tar -xf - --one-top-level="$work/source"
"${1:-python3}" -m venv "$work/venv"
pip="$work/venv/bin/pip install -q"
$pip --upgrade pip "setuptools>=77" ninja
$pip torch==2.11.0
command -v nvcc >/dev/null || $pip "cuda-toolkit[nvcc,cudart,cccl,crt,nvvm]==13.0.2"
cd "$work/source"
UNLEARNX_CUDA=1 TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-8.0;9.0+PTX}" $pip --no-build-isolation ".[test]"
cd "$work"
venv/bin/python - <<'PYTHON'
import unlearnx

info = unlearnx.build_info()
print(info)
assert info["cuda"] and info["cuda_archs"] and "cu" in info["version"], info
PYTHON
venv/bin/python -m pytest -q -m "not slow" "$work/source/tests/ops" -c "$work/source/pyproject.toml" --rootdir "$work/source"
