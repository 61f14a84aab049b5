// Argument checks shared by the ops. Every message names the op, the argument, what was expected and what came.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/errors.h"
#include "common/tensor.h"

namespace unlearnx {

/// Names an entry of a list; written out in messages alone, for lists are long.
struct Entry {
  const char* list;
  size_t index;
};
inline std::ostream& operator<<(std::ostream& out, const Entry& entry) {
  return out << entry.list << '[' << entry.index << ']';
}

// An argument is named by text or as an Entry.

template <typename Name>
void check_strided(const char* op, const Name& argument, const Tensor& t) {
  UX_CHECK_VALUE(t.is_strided(), op, ": ", argument, " has layout ", t.layout_name(), ", expected a strided tensor");
}

template <typename Name>
void check_floating(const char* op, const Name& argument, const Tensor& t) {
  const auto type = t.scalar_type();
  UX_CHECK_TYPE(type == kFloat || type == kDouble || type == kHalf || type == kBFloat16, op, ": ", argument,
                " has dtype ", type, ", expected float32, float64, float16 or bfloat16");
  check_strided(op, argument, t);
}

/// The product of sizes; raises where no tensor could hold so many entries. `what` says whose sizes they are.
inline int64_t checked_product(const char* op, const char* what, Sizes sizes) {
  uint64_t product = 1;
  bool wraps = false;
  for (const int64_t size : sizes) wraps |= __builtin_mul_overflow(product, static_cast<uint64_t>(size), &product);
  for (const int64_t size : sizes) wraps &= size != 0;
  UX_CHECK_VALUE(!wraps && product < (uint64_t{1} << 60), op, ": ", what, " has sizes ", sizes,
                 ", expected fewer than 2^60 entries");
  return static_cast<int64_t>(product);
}

/// `index`, counted from the end where it is negative, of a list of `size`.
inline int64_t checked_index(const char* op, const char* argument, int64_t index, int64_t size) {
  UX_CHECK_INDEX(-size <= index && index < size, op, ": ", argument, " is ", index, ", expected ", -size, " to ",
                 size - 1);
  return index < 0 ? index + size : index;
}

template <typename Name, typename Other>
void check_same_device(const char* op, const Name& argument, const Tensor& t, const Other& other, Place place) {
  UX_CHECK_VALUE(t.place() == place, op, ": ", argument, " is on ", t.place(), ", but ", other, " is on ", place);
}
template <typename Name, typename Other>
void check_same_device(const char* op, const Name& argument, const Tensor& t, const Other& other,
                       const Tensor& reference) {
  check_same_device(op, argument, t, other, reference.place());
}

template <typename Name, typename Other>
void check_same_shape(const char* op, const Name& argument, const Tensor& t, const Other& other,
                      const Tensor& reference) {
  UX_CHECK_VALUE(t.sizes() == reference.sizes(), op, ": ", argument, " has shape ", t.sizes(), ", expected ",
                 reference.sizes(), " as ", other);
}

inline void check_non_negative(const char* op, const char* argument, double value) {
  UX_CHECK_VALUE(std::isfinite(value) && value >= 0, op, ": ", argument, " is ", value,
                 ", expected a finite number >= 0");
}

/// Checks the list that an op writes: floating dtype and one device for all.
inline void check_written(const char* op, const char* name, const TensorList& list) {
  if (list.empty()) return;
  const Place place = list[0].place();
  for (size_t i = 0; i < list.size(); ++i) {
    const Entry here{name, i}, first{name, 0};
    check_floating(op, here, list[i]);
    check_same_device(op, here, list[i], first, place);
  }
}

/// Checks that `list` pairs up with the one that is written, tensor by tensor: length, shape, device, floating dtype.
inline void check_paired(const char* op, const char* name, const TensorList& list, const char* written_name,
                         const TensorList& written) {
  UX_CHECK_VALUE(list.size() == written.size(), op, ": ", name, " has ", list.size(), " tensors, but ", written_name,
                 " has ", written.size());
  if (list.empty()) return;
  const Place place = written[0].place();
  for (size_t i = 0; i < list.size(); ++i) {
    const Entry here{name, i}, there{written_name, i};
    check_floating(op, here, list[i]);
    check_same_device(op, here, list[i], there, place);
    check_same_shape(op, here, list[i], there, written[i]);
  }
}

/// The kernel of every device without one of its own. A call with empty lists has no device and ends here too.
inline void check_empty(const char* op, const TensorList& list) {
  UX_CHECK_IMPLEMENTED(list.empty(), op, ": this build of unlearnx has no kernel for ", list[0].place(),
                       "; CUDA kernels are built with UNLEARNX_CUDA=1");
}

}  // namespace unlearnx
