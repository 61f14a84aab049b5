#pragma once

#include "common/tensor.h"

namespace unlearnx {

/// As long as it lives, torch's own products and convolutions of this thread, on the device of a tensor, are in the
/// dtype of their operands, whatever is switched on: neither autocast nor TF32 nor, on CPUs, bfloat16 in the place of
/// float32. Differences of gradients and products of curvature cancel the digits that those keep.
///
/// What torch has no switch a thread for is switched for the process, until the last of these objects is gone.
/// Convolutions on CUDA are told in their arguments.
class FullPrecision {
 public:
  explicit FullPrecision(const Tensor& t);
  ~FullPrecision();
  FullPrecision(const FullPrecision&) = delete;
  FullPrecision& operator=(const FullPrecision&) = delete;

 private:
  const bool cuda_;
  const int64_t switched_;  // what the Python side has to switch back
};

/// What torch's convolutions on CUDA are to be called with.
struct ConvolutionSettings {
  bool benchmark, deterministic, enabled;  // of cuDNN
};
ConvolutionSettings convolution_settings();

}  // namespace unlearnx
