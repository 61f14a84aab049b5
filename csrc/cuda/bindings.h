// What every binding needs between a tensor and a launcher.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <vector>

#include "common/tensor.h"
#include "cuda/interface.h"

namespace unlearnx::cuda {

/// As long as it lives, the device of a tensor is the current one.
class DeviceGuard {
 public:
  explicit DeviceGuard(const Tensor& t) : device_(t.get_device_index()), guard_(device_) {}

  int device() const { return device_; }
  cudaStream_t stream() const {
    void* stream = nullptr;
    succeed(aoti_torch_get_current_cuda_stream(device_, &stream), "aoti_torch_get_current_cuda_stream");
    return static_cast<cudaStream_t>(stream);
  }

 private:
  const int device_;
  const torch::stable::accelerator::DeviceGuard guard_;
};

inline DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case kDouble:
      return DType::Double;
    case kHalf:
      return DType::Half;
    case kBFloat16:
      return DType::BFloat16;
    default:
      return DType::Float;
  }
}

/// Raises where a launch before it failed; says what to do where the build or the driver is not for the GPU.
void check_launch();

/// Null where the tensor is undefined.
inline const void* pointer(const Tensor& t) {
  return t.defined() ? t.const_data_ptr() : nullptr;
}

/// Gives tensors that pair up one dtype, the wider of the two.
inline void promote_pairs(TensorList& b, TensorList& c) {
  for (size_t i = 0; i < b.size(); ++i) {
    const auto common = promoted(b[i].scalar_type(), c[i].scalar_type());
    b[i] = b[i].to(common);
    c[i] = c[i].to(common);
  }
}

/// Three paired lists as launches of equal dtypes: calls launch(table, dtype of a, dtype of b and c). Where b and c
/// differ in dtype, both take the wider one.
template <typename Launch>
void for_each_table(const TensorList& a, TensorList b, TensorList c, const Launch& launch) {
  promote_pairs(b, c);
  std::vector<TensorTriple> list;
  for (size_t i = 0; i < a.size(); ++i)
    list.push_back({{a[i].data_ptr(), b[i].data_ptr(), c[i].data_ptr()}, a[i].numel(), dtype_of(a[i]), dtype_of(b[i])});
  for_each_table(list, launch);
}

}  // namespace unlearnx::cuda
