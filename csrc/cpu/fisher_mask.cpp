// Two passes over the importances find the smallest selected score in float32 (up to four in float64), one zeroes all
// that is greater, and a last one visits the chunks that hold ties to be zeroed.
#include "ops/fisher_mask.h"

#include <mutex>

#include "common/clones.h"
#include "common/dispatcher.h"
#include "common/selection.h"
#include "common/tensor_lists.h"
#include "cpu/chunks.h"
#include "cpu/convert.h"

namespace unlearnx::cpu {
namespace {

constexpr int kDigitBits = 16, kDigits = 1 << kDigitBits;
constexpr int64_t kGroup = 32;  // values tested at once, most groups holding none that a pass is about

template <typename T>
UX_INLINE void keys_body(const T* forget, const T* retain, int64_t n, SortKey<T>* keys) {
  for (int64_t i = 0; i < n; ++i) keys[i] = sort_key(forget[i] - retain[i]);
}
UX_CLONES void keys_of(const float* forget, const float* retain, int64_t n, uint32_t* keys) {
  keys_body(forget, retain, n, keys);
}
UX_CLONES void keys_of(const double* forget, const double* retain, int64_t n, uint64_t* keys) {
  keys_body(forget, retain, n, keys);
}

template <typename Key>
UX_INLINE void count_body(const Key* keys, int64_t n, Digit digit, Key prefix, int64_t* counts) {
  for (int64_t begin = 0; begin < n; begin += kGroup) {
    const int64_t end = begin + kGroup < n ? begin + kGroup : n;
    Key any = 0;
    for (int64_t i = begin; i < end; ++i) any |= Key(digit.prefix(keys[i]) == prefix);
    if (!any) continue;
    for (int64_t i = begin; i < end; ++i)
      if (digit.prefix(keys[i]) == prefix && keys[i] != 0) ++counts[digit.of(keys[i])];
  }
}
UX_CLONES void count_digits(const uint32_t* keys, int64_t n, Digit digit, uint32_t prefix, int64_t* counts) {
  count_body(keys, n, digit, prefix, counts);
}
UX_CLONES void count_digits(const uint64_t* keys, int64_t n, Digit digit, uint64_t prefix, int64_t* counts) {
  count_body(keys, n, digit, prefix, counts);
}

struct Tally {
  int64_t above = 0, ties = 0;
};

/// Marks the keys above the threshold; how many they are, and how many equal it.
template <typename Key>
UX_INLINE Tally mark_body(const Key* keys, int64_t n, Key threshold, uint8_t* marks) {
  int above = 0, ties = 0;
  for (int64_t i = 0; i < n; ++i) {
    marks[i] = keys[i] > threshold;
    above += marks[i];
    ties += keys[i] == threshold;
  }
  return {above, ties};
}
UX_CLONES Tally mark(const uint32_t* keys, int64_t n, uint32_t threshold, uint8_t* marks) {
  return mark_body(keys, n, threshold, marks);
}
UX_CLONES Tally mark(const uint64_t* keys, int64_t n, uint64_t threshold, uint8_t* marks) {
  return mark_body(keys, n, threshold, marks);
}

// Zero is the same in all dtypes of a size: no bit set.
template <typename Bits>
UX_INLINE void zero_body(Bits* values, const uint8_t* marks, int64_t n) {
  for (int64_t begin = 0; begin < n; begin += kGroup) {
    const int64_t end = begin + kGroup < n ? begin + kGroup : n;
    uint8_t any = 0;
    for (int64_t i = begin; i < end; ++i) any |= marks[i];
    if (!any) continue;
    for (int64_t i = begin; i < end; ++i) values[i] = marks[i] ? Bits(0) : values[i];
  }
}
UX_CLONES void zero(uint16_t* values, const uint8_t* marks, int64_t n) {
  zero_body(values, marks, n);
}
UX_CLONES void zero(uint32_t* values, const uint8_t* marks, int64_t n) {
  zero_body(values, marks, n);
}
UX_CLONES void zero(uint64_t* values, const uint8_t* marks, int64_t n) {
  zero_body(values, marks, n);
}

/// Zeroes the marked entries among those of `t` from `begin` on.
void zero_marked(const Tensor& t, int64_t begin, const uint8_t* marks, int64_t n) {
  void* const data = t.data_ptr();
  switch (t.element_size()) {
    case 2:
      return zero(static_cast<uint16_t*>(data) + begin, marks, n);
    case 4:
      return zero(static_cast<uint32_t*>(data) + begin, marks, n);
    default:
      return zero(static_cast<uint64_t*>(data) + begin, marks, n);
  }
}

/// The smallest selected key, and how many of those equal to it are selected.
template <typename Key>
struct Threshold {
  Key key;
  int64_t ties;
};

template <typename T>
class Scores {
 public:
  using Key = SortKey<T>;

  Scores(TensorList forget, TensorList retain)
      : forget_(std::move(forget)), retain_(std::move(retain)), chunks_(chunks_of(forget_)) {}

  Threshold<Key> threshold(int64_t selected) const {
    Key prefix = 0;
    int64_t remaining = selected;
    for (Digit digit{8 * sizeof(Key) - kDigitBits, kDigitBits};; digit.shift -= kDigitBits) {
      const auto counts = count(digit, prefix);
      const int value = find_digit(counts.data(), 0, kDigits - 1, remaining);
      prefix = (prefix << kDigitBits) | static_cast<Key>(value);
      if (digit.shift == 0) return {prefix, remaining};
      // All keys of this prefix are selected: the digits below do not matter. (No key comes before prefix 0.)
      if (prefix && remaining == counts[value]) return {(prefix << digit.shift) - 1, 0};
    }
  }

  /// Zeroes what lies above the threshold, and ties from the first on; counts[t] becomes the number in tensor t.
  void zero_from(Threshold<Key> threshold, const Written& params, int64_t* counts) const {
    const auto tallies = map_chunks<Tally>(chunks_, [&](const Chunk& chunk) {
      Tally total;
      uint8_t marks[kRun];
      for_each_run(chunk, [&](int64_t begin, const Key* keys, int64_t n) {
        const Tally tally = mark(keys, n, threshold.key, marks);
        if (tally.above) zero_marked(params[chunk.tensor], begin, marks, n);
        total.above += tally.above;
        total.ties += tally.ties;
      });
      return total;
    });
    std::vector<TiedChunk> tied;
    for (size_t c = 0; c < chunks_.size(); ++c) {
      const int64_t ties = std::min(tallies[c].ties, threshold.ties);
      threshold.ties -= ties;
      counts[chunks_[c].tensor] += tallies[c].above + ties;
      if (ties) tied.push_back({chunks_[c], ties});
    }
    parallel_for(0, static_cast<int64_t>(tied.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) zero_ties(tied[c], threshold.key, params);
    });
  }

 private:
  struct TiedChunk {
    Chunk chunk;
    int64_t selected;
  };

  void zero_ties(TiedChunk tied, Key threshold, const Written& params) const {
    uint8_t marks[kRun];
    for_each_run(tied.chunk, [&](int64_t begin, const Key* keys, int64_t n) {
      for (int64_t i = 0; i < n; ++i) {
        marks[i] = keys[i] == threshold && tied.selected > 0;
        tied.selected -= marks[i];
      }
      zero_marked(params[tied.chunk.tensor], begin, marks, n);
    });
  }

  /// How often each value of the digit occurs among the keys with the given prefix.
  std::vector<int64_t> count(Digit digit, Key prefix) const {
    std::vector<int64_t> total(kDigits);
    std::mutex adding;
    parallel_for(0, static_cast<int64_t>(chunks_.size()), 1, [&](int64_t begin, int64_t end) {
      std::vector<int64_t> counts(kDigits);
      for (int64_t c = begin; c < end; ++c)
        for_each_run(chunks_[c],
                     [&](int64_t, const Key* keys, int64_t n) { count_digits(keys, n, digit, prefix, counts.data()); });
      const std::lock_guard lock(adding);
      for (int d = 0; d < kDigits; ++d) total[d] += counts[d];
    });
    return total;
  }

  /// Calls work(begin, keys, n) for the chunk's runs.
  template <typename Work>
  void for_each_run(const Chunk& chunk, const Work& work) const {
    const auto &f = forget_[chunk.tensor], &r = retain_[chunk.tensor];
    Operand<T> forget(f.scalar_type(), f.const_data_ptr()), retain(r.scalar_type(), r.const_data_ptr());
    Key keys[kRun];
    for (int64_t begin = chunk.begin; begin < chunk.end; begin += kRun) {
      const int64_t n = std::min(kRun, chunk.end - begin);
      keys_of(forget.read(begin, n), retain.read(begin, n), n, keys);
      work(begin, keys, n);
    }
  }

  const TensorList forget_, retain_;
  const std::vector<Chunk> chunks_;
};

Tensor fisher_mask_(const TensorList& params, const TensorList& importance_forget, const TensorList& importance_retain,
                    double ratio) {
  const auto mask = check_fisher_mask(params, importance_forget, importance_retain, ratio);
  const Written p(params, Walk::Index);
  auto counts = zeros({static_cast<int64_t>(params.size())}, Like(kLong));
  const auto run = [&](auto zero) {
    const Scores<decltype(zero)> scores(p.align(importance_forget), p.align(importance_retain));
    scores.zero_from(scores.threshold(mask.selected), p, counts.mutable_data_ptr<int64_t>());
  };
  if (mask.wide)
    run(double{});
  else
    run(float{});
  p.finish();
  return counts;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(unlearnx, CPU, m) {
  m.impl("fisher_mask_", TORCH_BOX(&fisher_mask_));
}

}  // namespace unlearnx::cpu
