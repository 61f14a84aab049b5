#!/usr/bin/env bash
# Everything that wants an NVIDIA GPU, in stages; 10 minutes in all on an H200.
#   benchmarks/gpu.sh OUT [STAGE...]     results to the folder OUT; all stages in this order where none is named
#     build       the extension, for the GPU of this machine            build.log
#     selftest    every op on every device                              selftest.log
#     tests       every CUDA test                                       tests.log
#     benchmarks  ours and the others' times                            benchmarks.json
#     cifar       50,000 images, 10,000 flipped labels, 100 epochs      cifar-reference.json, cifar-best.json
# Stage cifar reads CIFAR-10 from $UNLEARNX_CIFAR, a folder or archive; its second run starts from the models of the
# first. Uses the Python on the path or $PYTHON, with a CUDA torch, setuptools, ninja and unlearnx[experiments,test]'s
# requirements.
set -uo pipefail
out=$(mkdir -p "${1:?folder for the results}" && cd "$1" && pwd)
shift
cd "$(dirname "$0")/.." || exit
python=${PYTHON:-python3}
export PYTHONPATH=$PWD

stage_build() {
  local arch
  arch=$("$python" -c 'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))') || return
  UNLEARNX_CUDA=1 TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-$arch}" \
    "$python" setup.py build_ext --inplace >"$out/build.log" 2>&1 || { tail -n 20 "$out/build.log"; return 1; }
}

stage_selftest() {
  "$python" -m unlearnx.selftest 2>&1 | tee "$out/selftest.log"
}

stage_tests() {
  "$python" -m pytest -q -m "cuda and not slow" tests 2>&1 | tee "$out/tests.log"
}

stage_benchmarks() {
  "$python" -m pytest -s benchmarks -k cuda --benchmark-json="$out/benchmarks.json" 2>&1 | tee "$out/benchmarks.log"
}

stage_cifar() {
  [ -n "${UNLEARNX_CIFAR:-}" ] || { echo "UNLEARNX_CIFAR is not set: it names the folder or archive of CIFAR-10"; return 1; }
  local models=$out/runs/cifar-reference/seed-0
  cifar reference && cifar best --clean "$models/clean.pt" --poisoned "$models/poisoned.pt"
}

# cifar PRESET [OPTION...]
cifar() {
  "$python" -m unlearnx run poison-cifar --data-root "$UNLEARNX_CIFAR" \
    --epochs 100 --budget 10000 --preset "$1" --out "$out/runs" --name "cifar-$1" --no-progress "${@:2}" &&
    cp "$out/runs/cifar-$1/result.json" "$out/cifar-$1.json"
}

[ $# -gt 0 ] || set -- build selftest tests benchmarks cifar
for stage; do
  declare -F "stage_$stage" >/dev/null || { echo "no stage $stage: build, selftest, tests, benchmarks, cifar"; exit 2; }
done
failed=()
for stage; do
  begin=$SECONDS
  "stage_$stage" || failed+=("$stage")
  echo "== $stage: $((SECONDS - begin)) s"
done
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
