#include "cuda/fisher_mask.cuh"

#include <functional>
#include <memory>

#include "harness.h"

using namespace harness;
using namespace unlearnx::cuda;

/// A tensor of a list with its importances.
struct Masked {
  TensorTriple data;
  std::vector<double> scores;
  std::function<double(int64_t)> param;
};

/// Scores, computed in T, with many ties where `levels` is small; every hundredth is NaN where `nans`.
template <typename P, typename I, typename T = Compute<P, I>>
Masked make(int64_t n, int levels, bool nans) {
  struct Data {
    std::vector<P> params;
    std::vector<I> forget, retain;
  };
  const auto data = std::make_shared<Data>(Data{uniform<P>(n, 1, 2), uniform<I>(n, -1, 1), uniform<I>(n, -1, 1)});
  Masked tensor{{{data->params.data(), data->forget.data(), data->retain.data()}, n, dtype<P>(), dtype<I>()}, {}, {}};
  for (int64_t i = 0; i < n; ++i) {
    I &forget = data->forget[i], &retain = data->retain[i];
    if (levels) {
      forget = static_cast<I>(static_cast<float>(static_cast<int>(generator() % levels)));
      retain = static_cast<I>(i % 2 ? 0.0f : -0.0f);
    }
    if (nans && i % 100 == 7) forget = retain = static_cast<I>(INFINITY);
    tensor.scores.push_back(static_cast<T>(value_of(forget)) - static_cast<T>(value_of(retain)));
  }
  tensor.param = [data](int64_t i) { return value_of(data->params[i]); };
  return tensor;
}

void test(const std::vector<Masked>& tensors, bool wide, double ratio) {
  std::vector<TensorTriple> list;
  std::vector<int64_t> first_block;
  int64_t blocks = 0, entries = 0;
  for (const auto& tensor : tensors) {
    list.push_back(tensor.data);
    first_block.push_back(blocks);
    blocks += (tensor.data.numel + kBlockValues - 1) / kBlockValues;
    entries += tensor.data.numel;
  }
  std::vector<int64_t> ties(blocks + 1), counts(tensors.size());
  std::vector<MaskedTensors> parts;
  for_each_table(list, [&](const TensorTable<3>& table, DType params, DType importances) {
    MaskedTensors part{table, params, importances, {}};
    for (int t = 0; t < table.count; ++t) part.ties[t] = ties.data() + first_block[table.index[t]];
    parts.push_back(part);
  });
  const auto selection = std::make_unique<Selection>();
  const auto selected = static_cast<int64_t>(ratio * static_cast<double>(entries));
  fisher_mask(parts, wide, selected, selection.get(), ties.data(), blocks, counts.data(), nullptr);

  struct Entry {
    double score;
    size_t tensor;
    int64_t i;
  };
  std::vector<Entry> order;
  for (size_t t = 0; t < tensors.size(); ++t)
    for (int64_t i = 0; i < tensors[t].data.numel; ++i) order.push_back({tensors[t].scores[i], t, i});
  const auto nan_last = std::stable_partition(order.begin(), order.end(), [](Entry e) { return e.score == e.score; });
  const int64_t numbers = nan_last - order.begin();
  std::stable_sort(order.begin(), nan_last, [](Entry a, Entry b) { return a.score > b.score; });
  std::vector<int64_t> expected(tensors.size());
  for (int64_t place = 0; place < entries; ++place) {
    const Entry& e = order[place];
    const bool zero = place < std::min(selected, numbers);
    expected[e.tensor] += zero;
    check((tensors[e.tensor].param(e.i) == 0) == zero, "zeroed", e.i, zero, !zero);
  }
  for (size_t t = 0; t < tensors.size(); ++t) check(counts[t] == expected[t], "count", t, expected[t], counts[t]);
}

template <typename P, typename I>
void test_one(const std::vector<int64_t>& sizes, int levels, bool nans, double ratio) {
  std::vector<Masked> tensors;
  for (const int64_t n : sizes) tensors.push_back(make<P, I>(n, levels, nans));
  test(tensors, sizeof(Compute<P, I>) == 8, ratio);
}

int main(int argc, char** argv) {
  return run(argc, argv, [] {
    test_one<float, float>({1, 4096, 0, 4097, 33, 9001}, 0, true, 0.1);
    test_one<float, float>({4099, 8192, 5, 4095}, 3, true, 0.5);
    test_one<float, float>({300, 4097}, 1, false, 0.97);
    test_one<float, float>({300, 257}, 2, true, 1);
    test_one<float, float>({300}, 2, true, 0);
    test_one<double, double>({255, 5000}, 0, true, 0.3);
    test_one<double, double>({4100, 4100}, 2, false, 0.7);
    test_one<double, double>({777}, 0, true, 1);
    test_one<__nv_bfloat16, __half>({4099, 3}, 0, false, 0.2);
    test_one<__half, __nv_bfloat16>({513}, 0, true, 0.999);
    test_one<float, float>({0}, 0, false, 0.5);
    for (const int count : kListLengths) test_one<float, float>(list_sizes(count), 3, false, 0.4);
    // Launches in another order than the list.
    test({make<__half, float>(700, 2, true), make<float, float>(4500, 2, false), make<__half, float>(900, 2, true),
          make<float, float>(4097, 2, false), make<__half, float>(0, 2, true), make<__half, float>(31, 2, true)},
         false, 0.4);
    test({make<float, float, double>(700, 3, false), make<float, double>(4500, 3, true),
          make<float, double>(900, 3, true), make<float, float, double>(4097, 3, false),
          make<float, float, double>(31, 3, false)},
         true, 0.4);
  });
}
