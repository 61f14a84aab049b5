// In-place ops on lists of tensors walk raw memory; these helpers lay the memory out so that they may.
#pragma once

#include "common/tensor.h"

namespace unlearnx {

/// `t`, or a copy of it whose memory runs in the same order as `reference`.
Tensor ordered_as(const Tensor& t, const Tensor& reference);

/// Whether an op meets the entries of a tensor in the order of memory, or needs that of their indices.
enum class Walk { Memory, Index };

/// The tensors an op writes. Those that its walk does not suit, because of gaps, overlaps or the order of dimensions,
/// are worked on in dense copies until finish(). Autograd is told by unlearnx/ops/_writes.py that all of them change.
class Written {
 public:
  explicit Written(const TensorList& tensors, Walk walk = Walk::Memory);

  const Tensor& operator[](size_t i) const { return dense_[i]; }
  const TensorList& tensors() const { return dense_; }

  /// The list `others`, each tensor in the memory order of the tensor it belongs to.
  TensorList align(const TensorList& others) const;

  /// Copies back what was worked on in copies.
  void finish() const;

 private:
  TensorList originals_, dense_;
  std::vector<size_t> copied_;
};

}  // namespace unlearnx
