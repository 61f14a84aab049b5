// In-place ops on lists must know whose memory they write: their kernels read and write many entries at a time.
#pragma once

#include <vector>

#include "common/tensor.h"

namespace unlearnx {

/// The tensors of one argument of an op.
struct NamedList {
  const char* name;
  const TensorList& tensors;
};

/// Whether an argument that is read may be the very tensor that is written at its place in the list.
enum class SamePlace { Allowed, Refused };

/// Raises where two entries of `written` are one in memory, or an entry is also one of a tensor that is read, other
/// than at its own place where that is allowed. Which entries are one is worked out exactly: columns of one matrix,
/// or every other entry of a vector, are not.
void check_overlap(const char* op, const NamedList& written, const std::vector<NamedList>& read, SamePlace same_place);

}  // namespace unlearnx
