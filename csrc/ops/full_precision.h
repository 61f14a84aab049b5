#pragma once

#include <ATen/Context.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

namespace unlearnx {

/// As long as it lives, torch's own products and convolutions of this thread are in the dtype of their operands,
/// whatever is switched on: neither autocast nor TF32 nor, on CPUs, bfloat16 in the place of float32. Differences of
/// gradients and products of curvature cancel the digits that those keep.
///
/// What torch has no switch a thread for is switched for the process, until the last of these objects is gone.
class FullPrecision {
 public:
  FullPrecision();
  ~FullPrecision();
  FullPrecision(const FullPrecision&) = delete;
  FullPrecision& operator=(const FullPrecision&) = delete;

 private:
  const c10::impl::ExcludeDispatchKeyGuard autocast_;
  const at::NoTF32Guard tf32_;  // of cuBLAS; convolutions are told in their arguments
};

}  // namespace unlearnx
