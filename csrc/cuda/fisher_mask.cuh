// Passes over the importances count the digits of the scores, eleven bits a pass; one zeroes all that is greater than
// the smallest selected score and counts ties; a last one visits the blocks that hold ties to be zeroed. What a pass
// finds stays in device memory.
#include "common/selection.h"
#include "cuda/fisher_mask.h"
#include "cuda/portable.cuh"

namespace unlearnx::cuda {

/// Sum over the threads of the block before this one.
template <typename T>
__device__ __forceinline__ T sum_before(T value) {
  UX_SHARED(T, values, kThreads);
  values[threadIdx.x] = value;
  __syncthreads();
  T sum = 0;
  for (unsigned t = 0; t < threadIdx.x; ++t) sum += values[t];
  return sum;
}

/// The keys of a tensor's scores, computed in T.
template <typename I, typename T>
struct Keys {
  const I *forget, *retain;

  __device__ __forceinline__ Keys(const TensorTable<3>& table, int tensor)
      : forget(static_cast<const I*>(table.data[1][tensor])), retain(static_cast<const I*>(table.data[2][tensor])) {}

  __device__ __forceinline__ SortKey<T> operator()(int64_t i) const {
    return sort_key(convert<T>(forget[i]) - convert<T>(retain[i]));
  }
};

__global__ void __launch_bounds__(kThreads) begin_kernel(Selection* selection, int64_t selected) {
  for (int d = static_cast<int>(threadIdx.x); d < kDigits; d += kThreads) selection->counts[d] = 0;
  if (threadIdx.x != 0) return;
  selection->prefix = 0;
  selection->remaining = selected;
}

/// Counts the values of the digit among the keys that share the prefix.
template <typename I, typename T>
__global__ void __launch_bounds__(kThreads)
    count_digits_kernel(TensorTable<3> table, Digit digit, Selection* selection) {
  UX_SHARED(unsigned, counts, kDigits);
  for (int d = static_cast<int>(threadIdx.x); d < kDigits; d += kThreads) counts[d] = 0;
  __syncthreads();
  const int tensor = tensor_of_block(table);
  const Keys<I, T> keys(table, tensor);
  const auto prefix = static_cast<SortKey<T>>(selection->prefix);
  for_block_values(table, tensor, keys, [&](int64_t, SortKey<T> key) {
    if (digit.prefix(key) == prefix && key != 0) atomicAdd(&counts[digit.of(key)], 1u);
  });
  __syncthreads();
  // Whole numbers: the order in which blocks add does not matter.
  for (int d = static_cast<int>(threadIdx.x); d < kDigits; d += kThreads)
    if (counts[d]) atomicAdd(&selection->counts[d], static_cast<unsigned long long>(counts[d]));
}

/// One block: adds the digit that the counts tell to the prefix. Thread 0 looks after the greatest digits.
__global__ void __launch_bounds__(kThreads) find_digit_kernel(Selection* selection, int width) {
  constexpr int kShare = kDigits / kThreads;
  const int thread = static_cast<int>(threadIdx.x), high = kDigits - 1 - thread * kShare, low = high - kShare + 1;
  const int64_t selected = selection->remaining;
  int64_t own = 0;
  for (int d = low; d <= high; ++d) own += static_cast<int64_t>(selection->counts[d]);
  const int64_t above = sum_before(own);  // with a barrier: all have read `remaining`
  int64_t remaining = selected - above;
  // The share in which the selection ends. It begins before the first share, and ends in the last at the latest.
  if ((thread == 0 || remaining > 0) && (thread == kThreads - 1 || remaining <= own)) {
    const int value = find_digit(selection->counts, low, high, remaining);
    selection->prefix = (selection->prefix << width) | static_cast<unsigned long long>(value);
    selection->remaining = remaining;
  }
  for (int d = low; d <= high; ++d) selection->counts[d] = 0;
}

/// Zeroes what lies above the threshold and counts ties, those of block b in place b of its tensor.
template <typename P, typename I, typename T>
__global__ void __launch_bounds__(kThreads)
    zero_above_kernel(MaskedTensors part, const Selection* selection, unsigned long long* counts) {
  const auto& table = part.table;
  const int tensor = tensor_of_block(table);
  P* params = static_cast<P*>(table.data[0][tensor]);
  const Keys<I, T> keys(table, tensor);
  const auto threshold = static_cast<SortKey<T>>(selection->prefix);
  int above = 0, ties = 0;
  for_block_values(table, tensor, keys, [&](int64_t i, SortKey<T> key) {
    ties += key == threshold;
    if (key <= threshold) return;
    params[i] = convert<P>(0.0f);
    ++above;
  });
  const int zeroed = block_sum(above);
  __syncthreads();
  const int tied = block_sum(ties);
  if (threadIdx.x != 0) return;
  part.ties[tensor][static_cast<int>(blockIdx.x) - table.first_block[tensor]] = tied;
  if (zeroed) atomicAdd(counts + table.index[tensor], static_cast<unsigned long long>(zeroed));
}

/// One block: every number becomes the sum of those before it; ties[n] the sum of all.
__global__ void __launch_bounds__(kThreads) scan_kernel(int64_t* ties, int64_t n) {
  const int64_t share = (n + kThreads - 1) / kThreads, first = threadIdx.x * share;
  const int64_t begin = first < n ? first : n, end = begin + share < n ? begin + share : n;
  int64_t own = 0;
  for (int64_t i = begin; i < end; ++i) own += ties[i];
  int64_t sum = sum_before(own);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t value = ties[i];
    ties[i] = sum;
    sum += value;
  }
  if (threadIdx.x == kThreads - 1) ties[n] = sum;
}

/// Zeroes ties, the first of the list before all others.
template <typename P, typename I, typename T>
__global__ void __launch_bounds__(kThreads)
    zero_ties_kernel(MaskedTensors part, const Selection* selection, unsigned long long* counts) {
  const auto& table = part.table;
  const int tensor = tensor_of_block(table);
  const int block = static_cast<int>(blockIdx.x) - table.first_block[tensor];
  const int64_t before = part.ties[tensor][block], ties = part.ties[tensor][block + 1] - before;
  const int64_t selected = selection->remaining - before;
  if (selected <= 0 || ties == 0) return;
  P* params = static_cast<P*>(table.data[0][tensor]);
  const Keys<I, T> keys(table, tensor);
  const auto threshold = static_cast<SortKey<T>>(selection->prefix);
  // Neighbouring values to each thread, so that ties are numbered in order.
  constexpr int kShare = static_cast<int>(kBlockValues) / kThreads;
  const int64_t begin = block * kBlockValues + threadIdx.x * kShare, left = table.numel[tensor] - begin;
  const int share = left < kShare ? (left > 0 ? static_cast<int>(left) : 0) : kShare;
  int own = 0;
  for (int i = 0; i < share; ++i) own += keys(begin + i) == threshold;
  int64_t place = sum_before(own);
  for (int i = 0; i < share; ++i) {
    if (keys(begin + i) != threshold) continue;
    if (place++ < selected) params[begin + i] = convert<P>(0.0f);
  }
  if (threadIdx.x == 0)
    atomicAdd(counts + table.index[tensor], static_cast<unsigned long long>(ties < selected ? ties : selected));
}

/// Calls work(Type<I>{}, Type<T>{}) for importances in I and scores in T.
template <typename Work>
void dispatch_scores(DType importances, bool wide, const Work& work) {
  dispatch(importances, [&](auto i) {
    with_type(wide, [&](auto t) { work(i, Type<Compute<typename decltype(i)::type, typename decltype(t)::type>>{}); });
  });
}

void fisher_mask(const std::vector<MaskedTensors>& parts, bool wide, int64_t selected, Selection* selection,
                 int64_t* ties, int64_t blocks, int64_t* counts, cudaStream_t stream) {
  const dim3 threads(kThreads);
  const auto totals = reinterpret_cast<unsigned long long*>(counts);
  UX_LAUNCH(begin_kernel, dim3(1), threads, stream, selection, selected);
  for (int end = wide ? 64 : 32; end > 0; end -= kDigitBits) {
    const int width = end < kDigitBits ? end : kDigitBits;
    const Digit digit{end - width, width};
    for (const auto& part : parts)
      dispatch_scores(part.importances, wide, [&](auto i, auto t) {
        UX_LAUNCH((count_digits_kernel<typename decltype(i)::type, typename decltype(t)::type>),
                  dim3(part.table.blocks()), threads, stream, part.table, digit, selection);
      });
    UX_LAUNCH(find_digit_kernel, dim3(1), threads, stream, selection, width);
  }
  const auto zero = [&](const MaskedTensors& part, const auto& launch) {
    dispatch(part.params,
             [&](auto p) { dispatch_scores(part.importances, wide, [&](auto i, auto t) { launch(p, i, t); }); });
  };
  for (const auto& part : parts)
    zero(part, [&](auto p, auto i, auto t) {
      UX_LAUNCH((zero_above_kernel<typename decltype(p)::type, typename decltype(i)::type, typename decltype(t)::type>),
                dim3(part.table.blocks()), threads, stream, part, selection, totals);
    });
  UX_LAUNCH(scan_kernel, dim3(1), threads, stream, ties, blocks);
  for (const auto& part : parts)
    zero(part, [&](auto p, auto i, auto t) {
      UX_LAUNCH((zero_ties_kernel<typename decltype(p)::type, typename decltype(i)::type, typename decltype(t)::type>),
                dim3(part.table.blocks()), threads, stream, part, selection, totals);
    });
}

}  // namespace unlearnx::cuda
