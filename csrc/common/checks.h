// Argument checks shared by the ops. Every message names the op, the argument, what was expected and what came.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <c10/util/safe_numerics.h>

#include <cmath>

namespace unlearnx {

inline void check_strided(const char* op, const char* argument, const at::Tensor& t) {
  TORCH_CHECK_VALUE(t.layout() == at::kStrided, op, ": ", argument, " has layout ", t.layout(),
                    ", expected a strided tensor");
}

inline void check_floating(const char* op, const char* argument, const at::Tensor& t) {
  const auto type = t.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16, op, ": ",
                   argument, " has dtype ", type, ", expected float32, float64, float16 or bfloat16");
  check_strided(op, argument, t);
}

/// The product of sizes; raises where no tensor could hold so many entries. `what` says whose sizes they are.
inline int64_t checked_product(const char* op, const char* what, at::IntArrayRef sizes) {
  uint64_t product = 1;
  bool wraps = false;
  for (const int64_t size : sizes) wraps |= c10::mul_overflows(product, static_cast<uint64_t>(size), &product);
  for (const int64_t size : sizes) wraps &= size != 0;
  TORCH_CHECK_VALUE(!wraps && product < (uint64_t{1} << 60), op, ": ", what, " has sizes ", sizes,
                    ", expected fewer than 2^60 entries");
  return static_cast<int64_t>(product);
}

/// `index`, counted from the end where it is negative, of a list of `size`.
inline int64_t checked_index(const char* op, const char* argument, int64_t index, int64_t size) {
  TORCH_CHECK_INDEX(-size <= index && index < size, op, ": ", argument, " is ", index, ", expected ", -size, " to ",
                    size - 1);
  return index < 0 ? index + size : index;
}

inline void check_same_device(const char* op, const char* argument, const at::Tensor& t, const char* other,
                              const at::Tensor& reference) {
  TORCH_CHECK_VALUE(t.device() == reference.device(), op, ": ", argument, " is on ", t.device(), ", but ", other,
                    " is on ", reference.device());
}

inline void check_same_shape(const char* op, const std::string& argument, const at::Tensor& t, const std::string& other,
                             const at::Tensor& reference) {
  TORCH_CHECK_VALUE(t.sym_sizes() == reference.sym_sizes(), op, ": ", argument, " has shape ", t.sym_sizes(),
                    ", expected ", reference.sym_sizes(), " as ", other);
}

inline void check_non_negative(const char* op, const char* argument, double value) {
  TORCH_CHECK_VALUE(std::isfinite(value) && value >= 0, op, ": ", argument, " is ", value,
                    ", expected a finite number >= 0");
}

/// Checks that `list` pairs up with `reference`, tensor by tensor: length, shape, device, floating dtype.
inline void check_paired(const char* op, const char* name, at::TensorList list, const char* reference_name,
                         at::TensorList reference) {
  TORCH_CHECK_VALUE(list.size() == reference.size(), op, ": ", name, " has ", list.size(), " tensors, but ",
                    reference_name, " has ", reference.size());
  for (size_t i = 0; i < list.size(); ++i) {
    const auto index = "[" + std::to_string(i) + "]";
    const auto here = name + index, there = reference_name + index;
    check_floating(op, here.c_str(), list[i]);
    check_same_device(op, here.c_str(), list[i], there.c_str(), reference[i]);
    check_same_shape(op, here, list[i], there, reference[i]);
  }
}

/// Checks the list that an op writes: floating dtype and one device for all.
inline void check_written(const char* op, const char* name, at::TensorList list) {
  for (size_t i = 0; i < list.size(); ++i) {
    const auto here = name + ("[" + std::to_string(i) + "]"), first = name + std::string("[0]");
    check_floating(op, here.c_str(), list[i]);
    check_same_device(op, here.c_str(), list[i], first.c_str(), list[0]);
  }
}

/// The kernel of every device without one of its own. A call with empty lists has no device and ends here too.
inline void check_empty(const char* op, at::TensorList list) {
  TORCH_CHECK_NOT_IMPLEMENTED(list.empty(), op, ": this build of unlearnx has no kernel for ", list[0].device(),
                              "; CUDA kernels are built with UNLEARNX_CUDA=1");
}

}  // namespace unlearnx
