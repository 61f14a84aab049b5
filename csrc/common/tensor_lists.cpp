#include "common/tensor_lists.h"

namespace unlearnx {

Tensor ordered_as(const Tensor& t, const Tensor& reference) {
  if (t.strides() == reference.strides()) return t;
  return empty_strided(reference.sizes(), reference.strides(), Like(t)).copy_(t.detached());
}

Written::Written(const TensorList& tensors, Walk walk) : originals_(tensors) {
  for (const auto& t : tensors) {
    const bool suits = walk == Walk::Memory ? t.is_non_overlapping_and_dense() : t.is_contiguous();
    if (!suits) copied_.push_back(dense_.size());
    dense_.push_back(suits ? t : t.detached().contiguous());
  }
}

TensorList Written::align(const TensorList& others) const {
  TensorList aligned;
  for (size_t i = 0; i < others.size(); ++i) aligned.push_back(ordered_as(others[i], dense_[i]));
  return aligned;
}

void Written::finish() const {
  for (const size_t i : copied_) originals_[i].detached().copy_(dense_[i]);
}

}  // namespace unlearnx
