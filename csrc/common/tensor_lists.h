// In-place ops on lists of tensors walk raw memory; these helpers lay the memory out so that they may.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/TensorImpl.h>

#include <vector>

namespace unlearnx {

/// `t`, or a copy of it whose memory runs in the same order as `reference`.
inline at::Tensor ordered_as(const at::Tensor& t, const at::Tensor& reference) {
  if (t.strides() == reference.strides()) return t;
  return at::empty_strided(reference.sizes(), reference.strides(), t.options()).copy_(t);
}

/// Whether an op meets the entries of a tensor in the order of memory, or needs that of their indices.
enum class Walk { Memory, Index };

/// The tensors an op writes. Those that its walk does not suit, because of gaps, overlaps or the order of dimensions,
/// are worked on in dense copies until finish(). Of the others autograd is told at once that they change: a schema's
/// Tensor(a!) alone does not bump the version when a kernel writes through a raw pointer, and an op that fails half-way
/// has written too.
class Written {
 public:
  explicit Written(at::TensorList tensors, Walk walk = Walk::Memory) : originals_(tensors.vec()) {
    for (const auto& t : originals_) {
      dense_.push_back(walk == Walk::Memory && t.is_non_overlapping_and_dense() ? t : t.contiguous());
      if (dense_.back().is_same(t)) t.unsafeGetTensorImpl()->bump_version();
    }
  }

  const at::Tensor& operator[](size_t i) const { return dense_[i]; }
  const std::vector<at::Tensor>& tensors() const { return dense_; }

  /// The list `others`, each tensor in the memory order of the tensor it belongs to.
  std::vector<at::Tensor> align(at::TensorList others) const {
    std::vector<at::Tensor> aligned;
    for (size_t i = 0; i < others.size(); ++i) aligned.push_back(ordered_as(others[i], dense_[i]));
    return aligned;
  }

  /// Copies back what was worked on in copies.
  void finish() const {
    const at::AutoDispatchBelowAutograd unrecorded;
    for (size_t i = 0; i < originals_.size(); ++i)
      if (!dense_[i].is_same(originals_[i])) originals_[i].copy_(dense_[i]);
  }

 private:
  std::vector<at::Tensor> originals_, dense_;
};

}  // namespace unlearnx
