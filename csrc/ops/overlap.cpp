#include "ops/overlap.h"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <string>

#include "common/errors.h"

namespace unlearnx {
namespace {

/// One tensor and the bytes from its first entry to its last.
struct Span {
  uintptr_t begin, end;
  const Tensor* tensor;
  const NamedList* list;
  size_t index;

  std::string name() const { return joined(list->name, "[", index, "]"); }
};

Span span_of(const NamedList& list, size_t index) {
  const Tensor& t = list.tensors[index];
  const auto begin = reinterpret_cast<uintptr_t>(t.const_data_ptr());
  const Sizes sizes = t.sizes(), strides = t.strides();
  uintptr_t entries = 1;
  for (size_t d = 0; d < sizes.size(); ++d) entries += (sizes[d] - 1) * strides[d];
  return {begin, begin + entries * t.itemsize(), &t, &list, index};
}

/// Whether strides alone tell that no two entries are one: each dimension steps over all that the smaller ones reach.
bool apart_by_strides(const Tensor& t) {
  if (t.is_contiguous()) return true;
  const Sizes sizes = t.sizes(), strides = t.strides();
  std::vector<size_t> order;
  for (size_t d = 0; d < sizes.size(); ++d)
    if (sizes[d] > 1) order.push_back(d);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return strides[a] < strides[b]; });
  int64_t reach = 0;
  for (const size_t d : order) {
    if (strides[d] <= reach) return false;
    reach += (sizes[d] - 1) * strides[d];
  }
  return true;
}

/// Marks the bytes of a span's entries; true where one was marked before. Bytes outside of [begin, end) do not count.
class Marks {
 public:
  Marks(uintptr_t begin, uintptr_t end) : begin_(begin), end_(end), marked_(end - begin) {}

  bool add(const Span& span) {
    const Tensor& t = *span.tensor;
    const Sizes sizes = t.sizes(), strides = t.strides();
    const int64_t entries = t.numel(), itemsize = t.itemsize(), dims = t.dim();
    std::vector<int64_t> place(dims, 0);
    bool met = false;
    for (int64_t entry = 0; entry < entries && !met; ++entry) {
      const auto offset = std::inner_product(place.begin(), place.end(), strides.begin(), int64_t{0});
      met = mark(span.begin + offset * itemsize, itemsize);
      for (int64_t d = dims - 1; d >= 0 && ++place[d] == sizes[d]; --d) place[d] = 0;
    }
    return met;
  }

 private:
  bool mark(uintptr_t first, size_t size) {
    bool met = false;
    for (uintptr_t byte = std::max(first, begin_); byte < std::min(first + size, end_); ++byte) {
      met |= marked_[byte - begin_];
      marked_[byte - begin_] = true;
    }
    return met;
  }

  uintptr_t begin_, end_;
  std::vector<bool> marked_;
};

bool overlaps_itself(const Span& span) {
  return !apart_by_strides(*span.tensor) && Marks(span.begin, span.end).add(span);
}

bool share_entries(const Span& a, const Span& b) {
  const auto begin = std::max(a.begin, b.begin), end = std::min(a.end, b.end);
  if (begin >= end) return false;
  if (a.tensor->is_non_overlapping_and_dense() && b.tensor->is_non_overlapping_and_dense()) return true;
  const auto first_alone = [](const Span& s) { return apart_by_strides(*s.tensor); };
  const Span& marked = first_alone(a) ? a : b;  // written entries are apart; those of a tensor that is read may not be
  Marks marks(begin, end);
  marks.add(marked);
  return marks.add(&marked == &a ? b : a);
}

bool same_tensor(const Span& a, const Span& b) {
  return a.begin == b.begin && a.tensor->strides() == b.tensor->strides() &&
         a.tensor->scalar_type() == b.tensor->scalar_type();
}

}  // namespace

void check_overlap(const char* op, const NamedList& written, const std::vector<NamedList>& read, SamePlace same_place) {
  std::vector<Span> spans;
  const auto add = [&](const NamedList& list) {
    for (size_t i = 0; i < list.tensors.size(); ++i)
      if (list.tensors[i].numel() > 0) spans.push_back(span_of(list, i));
  };
  add(written);
  for (const auto& span : spans)
    UX_CHECK_VALUE(!overlaps_itself(span), op, ": ", span.name(), " has strides ", span.tensor->strides(),
                   ", expected a tensor each of whose entries has memory of its own; pass a clone");
  for (const auto& list : read) add(list);
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
  for (size_t i = 0; i < spans.size(); ++i) {
    for (size_t j = i + 1; j < spans.size() && spans[j].begin < spans[i].end; ++j) {
      const bool first = spans[i].list == &written, second = spans[j].list == &written;
      if (!first && !second) continue;
      const Span &out = first ? spans[i] : spans[j], &other = first ? spans[j] : spans[i];
      const bool in_place = other.list != &written && other.index == out.index && same_tensor(out, other);
      if (in_place && same_place == SamePlace::Allowed) continue;
      UX_CHECK_VALUE(!share_entries(out, other), op, ": ", other.name(), " shares memory with ", out.name(),
                     ", which is written, expected memory of its own; pass a clone");
    }
  }
}

}  // namespace unlearnx
