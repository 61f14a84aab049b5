#include "cuda/lissa_step.cuh"

#include "harness.h"

using namespace harness;
using namespace unlearnx::cuda;

template <typename S, typename R>
void test(std::vector<int64_t> sizes, double damping, double scale) {
  std::vector<std::vector<S>> h, before;
  std::vector<std::vector<R>> v, hv;
  std::vector<TensorTriple> list;
  int64_t blocks = 0;
  for (int64_t n : sizes) {
    h.push_back(uniform<S>(n, -1, 1));
    v.push_back(uniform<R>(n, -1, 1));
    hv.push_back(uniform<R>(n, -1, 1));
  }
  before = h;
  for (size_t t = 0; t < sizes.size(); ++t) {
    list.push_back({{h[t].data(), v[t].data(), hv[t].data()}, sizes[t], dtype<S>(), dtype<R>()});
    blocks += (sizes[t] + kBlockValues - 1) / kBlockValues;
  }
  std::vector<double> partial(blocks);
  double* next = partial.data();
  for_each_table(list, [&](const TensorTable<3>& table, DType written, DType read) {
    lissa_step(table, written, read, 1 - damping, 1 / scale, next, nullptr);
    next += table.blocks();
  });
  float norm[1];
  double wide_norm[1];
  lissa_norm(partial.data(), blocks, norm, false, nullptr);
  lissa_norm(partial.data(), blocks, wide_norm, true, nullptr);
  double change = 0;
  for (size_t t = 0; t < sizes.size(); ++t)
    for (int64_t i = 0; i < sizes[t]; ++i) {
      const double old = value_of(before[t][i]);
      const double next = value_of(v[t][i]) + (1 - damping) * old - value_of(hv[t][i]) / scale;
      check_close("h", i, next, value_of(h[t][i]), 2 * rounding<S>() + 1e-6);
      change += std::abs(next - old);
    }
  check_close("norm", 0, change, wide_norm[0], 1e-6);
  check_close("float norm", 0, change, norm[0], 1e-6);
}

int main(int argc, char** argv) {
  return run(argc, argv, [] {
    test<float, float>({1, 4096, 0, 4097, 31, 9001}, 0.01, 3);
    test<double, double>({4095, 7}, 0.5, 0.25);
    test<float, double>({300}, 0, 1);
    test<__half, __nv_bfloat16>({1025}, 0.1, 10);
    test<float, float>({}, 0.1, 10);
    test<float, float>({0}, 0.1, 10);
    for (const int count : kListLengths) test<float, float>(list_sizes(count), 0.1, 10);
  });
}
