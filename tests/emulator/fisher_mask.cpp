#include "cuda/fisher_mask.cuh"

#include <memory>
#include <numeric>

#include "harness.h"

using namespace harness;
using namespace unlearnx::cuda;

/// Tensors of one dtype, a launch's share of a list.
struct Part {
  MaskedTensors masked;
  std::vector<int> places;  // in the list
  std::vector<std::vector<double>> scores;
  std::function<double(int, int64_t)> param;
};

/// Scores with many ties where `levels` is small; every hundredth is NaN where `nans`.
template <typename P, typename I, typename T>
Part make(std::vector<int> places, const std::vector<int64_t>& sizes, int levels, bool nans) {
  struct Data {
    std::vector<std::vector<P>> params;
    std::vector<std::vector<I>> forget, retain;
  };
  const auto data = std::make_shared<Data>();
  Part part{{TensorTable<3>(), dtype<P>(), dtype<I>(), {}}, places, {}, {}};
  for (int place : places) {
    const int64_t n = sizes[place];
    data->params.push_back(uniform<P>(n, 1, 2));
    data->forget.push_back(uniform<I>(n, -1, 1));
    data->retain.push_back(uniform<I>(n, -1, 1));
    auto &forget = data->forget.back(), &retain = data->retain.back();
    part.scores.emplace_back();
    for (int64_t i = 0; i < n; ++i) {
      if (levels) {
        forget[i] = static_cast<I>(static_cast<float>(static_cast<int>(generator() % levels)));
        retain[i] = static_cast<I>(i % 2 ? 0.0f : -0.0f);
      }
      if (nans && i % 100 == 7) forget[i] = retain[i] = static_cast<I>(INFINITY);
      part.scores.back().push_back(static_cast<T>(value_of(forget[i])) - static_cast<T>(value_of(retain[i])));
    }
    if (n) part.masked.table.add(place, n, {data->params.back().data(), forget.data(), retain.data()});
  }
  part.param = [data](int t, int64_t i) { return value_of(data->params[t][i]); };
  return part;
}

void test(const std::vector<int64_t>& sizes, std::vector<Part> parts, bool wide, double ratio) {
  std::vector<int64_t> first_block;
  int64_t blocks = 0, entries = 0;
  for (int64_t n : sizes) {
    first_block.push_back(blocks);
    blocks += (n + kBlockValues - 1) / kBlockValues;
    entries += n;
  }
  std::vector<int64_t> ties(blocks + 1), counts(sizes.size());
  std::vector<MaskedTensors> masked;
  for (auto& part : parts) {
    for (int t = 0; t < part.masked.table.count; ++t)
      part.masked.ties[t] = ties.data() + first_block[part.masked.table.index[t]];
    masked.push_back(part.masked);
  }
  const auto selection = std::make_unique<Selection>();
  const auto selected = static_cast<int64_t>(ratio * static_cast<double>(entries));
  fisher_mask(masked, wide, selected, selection.get(), ties.data(), blocks, counts.data(), nullptr);

  struct Entry {
    double score;
    const Part* part;
    int tensor;
    int64_t i;
  };
  std::vector<Entry> order;
  int64_t numbers = 0;
  for (int place = 0; place < static_cast<int>(sizes.size()); ++place)
    for (const auto& part : parts)
      for (size_t t = 0; t < part.places.size(); ++t)
        for (int64_t i = 0; part.places[t] == place && i < sizes[place]; ++i)
          order.push_back({part.scores[t][i], &part, static_cast<int>(t), i});
  const auto nan_last = std::stable_partition(order.begin(), order.end(), [](Entry e) { return e.score == e.score; });
  numbers = nan_last - order.begin();
  std::stable_sort(order.begin(), nan_last, [](Entry a, Entry b) { return a.score > b.score; });
  std::vector<int64_t> expected(sizes.size());
  for (int64_t place = 0; place < entries; ++place) {
    const Entry& e = order[place];
    const bool zero = place < std::min(selected, numbers);
    expected[e.part->places[e.tensor]] += zero;
    check((e.part->param(e.tensor, e.i) == 0) == zero, "zeroed", e.i, zero, !zero);
  }
  for (size_t t = 0; t < sizes.size(); ++t) check(counts[t] == expected[t], "count", t, expected[t], counts[t]);
}

template <typename P, typename I>
void test_one(const std::vector<int64_t>& sizes, int levels, bool nans, double ratio) {
  std::vector<int> places(sizes.size());
  std::iota(places.begin(), places.end(), 0);
  using T = Compute<P, I>;
  test(sizes, {make<P, I, T>(places, sizes, levels, nans)}, sizeof(T) == 8, ratio);
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
    // Launches in another order than the list.
    const std::vector<int64_t> sizes = {700, 4500, 900, 4097, 0, 31};
    test(sizes,
         {make<float, float, float>({1, 3}, sizes, 2, false), make<__half, float, float>({0, 2, 4, 5}, sizes, 2, true)},
         false, 0.4);
    test(sizes,
         {make<float, double, double>({1, 2}, sizes, 3, true),
          make<float, float, double>({0, 3, 4, 5}, sizes, 3, false)},
         true, 0.4);
    test({0}, {}, false, 0.5);
  });
}
