// What every binding needs between a tensor and a launcher.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <vector>

#include "cuda/interface.h"

namespace unlearnx::cuda {

inline DType dtype_of(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kDouble:
      return DType::Double;
    case at::kHalf:
      return DType::Half;
    case at::kBFloat16:
      return DType::BFloat16;
    default:
      return DType::Float;
  }
}

/// Raises where a launch before it failed; says what to do where the build or the driver is not for the GPU.
void check_launch();

/// Null where the tensor is undefined.
inline const void* pointer(const at::Tensor& t) {
  return t.defined() ? t.const_data_ptr() : nullptr;
}

/// Gives tensors that pair up one dtype, the wider of the two.
inline void promote_pairs(std::vector<at::Tensor>& b, std::vector<at::Tensor>& c) {
  for (size_t i = 0; i < b.size(); ++i) {
    const auto common = c10::promoteTypes(b[i].scalar_type(), c[i].scalar_type());
    b[i] = b[i].to(common);
    c[i] = c[i].to(common);
  }
}

/// Three paired lists as launches of equal dtypes: calls launch(table, dtype of a, dtype of b and c). Where b and c
/// differ in dtype, both take the wider one.
template <typename Launch>
void for_each_table(const std::vector<at::Tensor>& a, std::vector<at::Tensor> b, std::vector<at::Tensor> c,
                    const Launch& launch) {
  promote_pairs(b, c);
  std::vector<TensorTriple> list;
  for (size_t i = 0; i < a.size(); ++i)
    list.push_back({{a[i].data_ptr(), b[i].data_ptr(), c[i].data_ptr()}, a[i].numel(), dtype_of(a[i]), dtype_of(b[i])});
  for_each_table(list, launch);
}

}  // namespace unlearnx::cuda
