#!/usr/bin/env bash
# Builds the wheel for one torch from the sdist and checks it, every step in an environment that is thrown away.
#   packaging/wheel.sh TORCH CUDA OTHER     such as 2.11.0 130 2.13.0, or 2.13.0 cpu 2.11.0
# TORCH: version to build for; CUDA: cpu, or the CUDA release of that torch without its dot; OTHER: a torch of another
# release, which the wheel has to refuse. Writes sdist and wheel to dist. Environment: PYTHON; INDEX, pip's index of
# torch; TORCH_CUDA_ARCH_LIST. Needs no GPU; without nvcc on the path, that of CUDA 13 is taken from PyPI.
set -euo pipefail
torch=${1:?version of torch} cuda=${2:?cpu or a CUDA release such as 130} other=${3:?another version of torch}
cd "$(dirname "$0")/.."
source=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say() { printf '\n== %s\n' "$*"; }

# environment NAME TORCH [PACKAGE...]: a fresh one in $work/NAME
environment() {
  say "environment $1: torch $2"
  "${PYTHON:-python3}" -m venv "$work/$1"
  "$work/$1/bin/pip" install -q --upgrade pip numpy "${@:3}"
  "$work/$1/bin/pip" install -q "torch==$2" ${INDEX:+--index-url "$INDEX"}
}

environment build "$torch" "setuptools>=77" ninja
if [ "$cuda" = cpu ]; then
  export UNLEARNX_CUDA=0
  tag=cpu
else
  export UNLEARNX_CUDA=1
  tag=cu$cuda
  toolkit="cuda-toolkit[nvcc,cudart,cccl,crt,nvvm]==${cuda:0:2}.${cuda:2}.*"
  command -v nvcc >/dev/null || "$work/build/bin/pip" install -q "$toolkit"
fi
tag=+pt$(cut -d. -f1,2 <<<"$torch" | tr -d .)$tag

say "sdist"
mkdir "$work/sdist"
"$work/build/bin/python" setup.py -q egg_info --egg-base "$work/sdist" sdist --dist-dir "$work/sdist"
sdist=$(echo "$work"/sdist/*.tar.gz)

say "wheel of $(basename "$sdist")"
cd "$work"
PATH="$work/build/bin:$PATH" build/bin/pip wheel -q --no-build-isolation --no-deps -w wheel "$sdist"
wheel=$(echo "$work"/wheel/*.whl)

environment matching "$torch"
matching/bin/pip install -q --no-deps "$wheel"
cuobjdump=$(find "$work/build" -name cuobjdump -type f -print -quit)  # a CUDA torch brings Triton's
matching/bin/python "$source/packaging/check.py" "$tag" "$cuobjdump"
matching/bin/python -m unlearnx.selftest

environment mismatching "$other"
mismatching/bin/pip install -q --no-deps "$wheel"
if message=$(mismatching/bin/python -c 'import unlearnx' 2>&1); then
  echo "the wheel for torch $torch imports beside torch $other"
  exit 1
fi
echo "${message##*$'\n'}"
grep -qE '^ImportError: unlearnx (was built for torch|is built as)' <<<"$message"

mkdir -p "$source/dist"
cp "$sdist" "$wheel" "$source/dist"
say "dist/$(basename "$wheel"), $(du -h "$wheel" | cut -f1)"
