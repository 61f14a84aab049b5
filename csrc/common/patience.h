// The rule that ends a LiSSA run, one for CPU and CUDA.
#pragma once

#include <cstdint>

#include "common/anywhere.h"

namespace unlearnx {

/// Takes note of an update, and tells whether the run goes on: it ends at one that is not finite, or that exceeds the
/// smallest one `patience - 1` updates after it or later, as published. A run begins with smallest infinite, since 0.
UX_ANYWHERE bool goes_on(double update, int64_t patience, double& smallest, int64_t& since) {
  if (!(update - update == 0) || (update > smallest && since >= patience)) return false;
  if (update < smallest) {
    smallest = update;
    since = 1;
  }
  ++since;
  return true;
}

}  // namespace unlearnx
