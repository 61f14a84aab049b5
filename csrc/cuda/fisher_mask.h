#pragma once

#include <vector>

#include "cuda/interface.h"

namespace unlearnx::cuda {

constexpr int kDigitBits = 11, kDigits = 1 << kDigitBits;

/// A search for the smallest selected key, in device memory.
struct Selection {
  unsigned long long prefix;           // the digits of that key found so far; the key itself at the end
  int64_t remaining;                   // keys with this prefix that are selected
  unsigned long long counts[kDigits];  // of the values of the next digit; zero between passes
};

/// Parameters (data[0]) and their importances over the forget set (data[1]) and the retained data (data[2]).
struct MaskedTensors {
  TensorTable<3> table;
  DType params, importances;
  int64_t* ties[kTableSize];  // of each tensor: where its blocks count their ties
};

/// Zeroes the `selected` parameters of the largest scores, computed in float64 where `wide`, in all `parts`; adds the
/// zeroed entries of tensor t to counts[index[t]]. `ties` has room for `blocks` numbers, one for each block of all
/// parts in the order of the list, and one more.
void fisher_mask(const std::vector<MaskedTensors>& parts, bool wide, int64_t selected, Selection* selection,
                 int64_t* ties, int64_t blocks, int64_t* counts, cudaStream_t stream);

}  // namespace unlearnx::cuda
