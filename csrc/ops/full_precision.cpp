// torch's switches are not in its stable ABI: they are reached through operators that unlearnx/ops/_switches.py
// defines.
#include "ops/full_precision.h"

#include "common/dispatcher.h"

namespace unlearnx {

FullPrecision::FullPrecision(const Tensor& t)
    : cuda_(t.defined() && t.is_cuda()), switched_(dispatch<int64_t>("unlearnx::_enter_full_precision", "", cuda_)) {}

FullPrecision::~FullPrecision() {
  if (switched_ == 0) return;
  try {
    dispatch<void>("unlearnx::_leave_full_precision", "", cuda_, switched_);
  } catch (const std::exception&) {  // from a destructor nothing may be thrown; torch has printed it
  }
}

ConvolutionSettings convolution_settings() {
  const auto bits = dispatch<int64_t>("unlearnx::_convolution_settings", "");
  return {(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0};
}

}  // namespace unlearnx
