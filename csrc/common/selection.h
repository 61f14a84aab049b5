// Finding the largest scores digit by digit, with arithmetic shared by CPU and CUDA.
//
// Scores become integers (keys) of the same order. Counting how often each value of the leading digit occurs tells the
// digit of the smallest key to select; counting the next digit among the keys that share it, the next; and so on.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/anywhere.h"

namespace unlearnx {

template <typename T>
using SortKey = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

/// An integer that grows with `score`, the same for both zeros, and 0 for NaN alone.
template <typename T>
UX_ANYWHERE SortKey<T> sort_key(T score) {
  using Key = SortKey<T>;
  constexpr Key kSign = Key(1) << (8 * sizeof(Key) - 1);
  score += T(0);  // -0 becomes +0
  Key bits;
  std::memcpy(&bits, &score, sizeof(Key));
  const Key ordered = bits & kSign ? ~bits : bits | kSign;
  return score == score ? ordered : 0;
}

/// `width` bits of a key, with `shift` bits below them.
struct Digit {
  int shift, width;

  template <typename Key>
  UX_ANYWHERE Key of(Key key) const {
    return (key >> shift) & ((Key(1) << width) - 1);
  }
  /// The bits above. Two shifts: one by all bits of a key is not defined.
  template <typename Key>
  UX_ANYWHERE Key prefix(Key key) const {
    return (key >> shift) >> width;
  }
};

/// The digit of the smallest selected key, given counts of the digits `low` to `high`, of which `remaining` keys are
/// to be selected from above. Takes those of greater digits off `remaining`; where there are too few keys, all are
/// selected.
template <typename Count>
UX_ANYWHERE int find_digit(const Count* counts, int low, int high, int64_t& remaining) {
  int digit = high;
  while (digit > low && remaining > static_cast<int64_t>(counts[digit]))
    remaining -= static_cast<int64_t>(counts[digit--]);
  if (remaining > static_cast<int64_t>(counts[digit])) remaining = static_cast<int64_t>(counts[digit]);
  return digit;
}

}  // namespace unlearnx
