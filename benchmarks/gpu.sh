#!/usr/bin/env bash
# Everything that wants an NVIDIA GPU, in stages with limits: 560 seconds in all, what tells most first.
#
#   benchmarks/gpu.sh OUT [STAGE...]              every stage, or those named; results to the folder OUT
#   benchmarks/gpu.sh --dry-run OUT [STAGE...]    says what each stage would run, and for how long at most; needs no GPU
#
#   probe       GPU, driver, compiler, Python
#   build       the extension, for the generation of this GPU; where it fails, the run ends
#   smoke       every kernel and dtype at odd and misaligned sizes, with TF32 on and off
#   selftest    every op on every device
#   tests       every CUDA test that is not slow, in 8 processes
#   kernels     kernels beside torch and the ceilings of this GPU          OUT/kernels-gpu.json
#   large       tensors of more than 2^31 values
#   sanitizer   memcheck, racecheck and synccheck of compute-sanitizer on the self-test
#   rivals      Fisher diagonals and curvature beside other libraries      OUT/rivals-gpu.json
#
# By its name alone, in a call of its own: 50,000 images, 10,000 flipped labels, 100 epochs; reads CIFAR-10 from
# $UNLEARNX_CIFAR, a folder or archive.
#   cifar       OUT/poison-cifar-reference.json, OUT/poison-cifar-best.json
#
# What a stage leaves of its time is the next ones'. OUT/gpu.log holds what all of them print. A result becomes a table
# when it is put into benchmarks/results: see benchmarks/report.py. Uses $PYTHON, or python3, with a CUDA torch, setuptools,
# ninja and what unlearnx[experiments,test] requires.
set -uo pipefail
dry=
[ "${1:-}" != --dry-run ] || { dry=1; shift; }
out=$(mkdir -p "${1:?folder for the results}" && cd "$1" && pwd) || exit
shift
cd "$(dirname "$0")/.." || exit
python=${PYTHON:-python3}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1

stages=(probe build smoke selftest tests kernels large sanitizer rivals)
declare -A limit=([probe]=20 [build]=130 [smoke]=60 [selftest]=30 [tests]=110 [kernels]=50 [large]=30 [sanitizer]=60
  [rivals]=70 [cifar]=560)

# Shows a command and, but for a dry run, runs it in the time that is left to the stage. Interrupted, pytest still writes
# the results that it has.
run() {
  printf '$'; printf ' %q' "$@"; echo
  [ -z "$dry" ] || return 0
  [ "$deadline" -gt "$SECONDS" ] || { echo "no time left"; return 1; }
  timeout --signal INT --kill-after 10 "$((deadline - SECONDS))" "$@"
}

pytest() {
  run "$python" -m pytest -q -p no:cacheprovider "$@"
}

stage_probe() {
  run nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader &&
    run nvcc --version &&
    run "$python" -c 'import setuptools, pytest, pytest_benchmark, xdist, torch; print(torch.__version__, torch.cuda.get_device_name())'
}

stage_build() {
  local arch=GENERATION
  [ -n "$dry" ] ||
    arch=$("$python" -c 'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))') || return
  run env UNLEARNX_CUDA=1 TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-$arch}" \
    "$python" setup.py build_ext --inplace 2>&1 | tail -n 30
}

stage_smoke() {
  run "$python" -m benchmarks.gpu.smoke cuda
}

stage_selftest() {
  run "$python" -m unlearnx.selftest
}

stage_tests() {
  OMP_NUM_THREADS=2 pytest -n 8 -m 'cuda and not slow' tests
}

stage_kernels() {
  pytest benchmarks/gpu benchmarks/test_{fisher_mask,linear_grad,lissa_step,lstm,softmax_linear,ssd_dampen}.py \
    -m 'not slow' -k cuda --benchmark-json="$out/kernels-gpu.json"
}

stage_large() {
  pytest -m 'cuda and slow' tests/ops
}

stage_sanitizer() {
  local tool status=0
  for tool in memcheck racecheck synccheck; do
    run compute-sanitizer --tool "$tool" --kernel-regex kns=unlearnx --error-exitcode 9 \
      "$python" -m unlearnx.selftest || status=1
  done
  return $status
}

stage_rivals() {
  pytest benchmarks/test_{fisher,curvature}.py -m 'not slow' -k 'cuda and not published' \
    --benchmark-json="$out/rivals-gpu.json"
}

stage_cifar() {
  [ -n "$dry" ] || [ -n "${UNLEARNX_CIFAR:-}" ] ||
    { echo "UNLEARNX_CIFAR is not set: it names the folder or archive of CIFAR-10"; return 1; }
  local models=$work/cifar-reference/seed-0
  cifar reference && cifar best --clean "$models/clean.pt" --poisoned "$models/poisoned.pt"
}

# cifar PRESET [OPTION...]
cifar() {
  run "$python" -m unlearnx run poison-cifar --data-root "${UNLEARNX_CIFAR:-UNLEARNX_CIFAR}" --epochs 100 \
    --budget 10000 --preset "$1" --out "$work" --name "cifar-$1" --no-progress "${@:2}" &&
    run cp "$work/cifar-$1/result.json" "$out/poison-cifar-$1.json"
}

main() {
  local deadline=$SECONDS begin total=0 failed=()
  for stage; do
    begin=$SECONDS deadline=$((deadline + limit[$stage])) total=$((total + limit[$stage]))
    echo "== $stage, at most ${limit[$stage]} s"
    if ! "stage_$stage"; then failed+=("$stage"); fi
    [ -n "$dry" ] || echo "== $stage took $((SECONDS - begin)) s"
    [[ " ${failed[*]} " != *" build "* ]] || break
  done
  echo "== $SECONDS s, at most $total s"
  [ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; return 1; }
}

[ $# -gt 0 ] || set -- "${stages[@]}"
for stage; do
  [ -n "${limit[$stage]:-}" ] || { echo "no stage $stage: ${stages[*]} cifar"; exit 2; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
main "$@" 2>&1 | tee "$out/gpu.log"
