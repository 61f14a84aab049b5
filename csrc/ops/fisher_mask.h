#pragma once

#include "common/tensor.h"

namespace unlearnx {

/// What a call of fisher_mask_ asks for.
struct FisherMask {
  int64_t selected;  // entries to zero
  bool wide;         // whether scores are float64
};

/// Raises unless the three lists pair up and the ratio is in range.
FisherMask check_fisher_mask(const TensorList& params, const TensorList& importance_forget,
                             const TensorList& importance_retain, double ratio);

}  // namespace unlearnx
