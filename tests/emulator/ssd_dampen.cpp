#include "cuda/ssd_dampen.cuh"

#include "harness.h"

using namespace harness;
using namespace unlearnx::cuda;

template <typename P, typename I>
void test(std::vector<int64_t> sizes, DampenRule rule) {
  std::vector<std::vector<P>> params, before;
  std::vector<std::vector<I>> full, forget;
  std::vector<TensorTriple> list;
  std::vector<int64_t> counts(sizes.size(), 0);
  for (int64_t n : sizes) {
    params.push_back(uniform<P>(n, -1, 1));
    full.push_back(uniform<I>(n, 0, 1));
    forget.push_back(uniform<I>(n, 0, 4));
  }
  before = params;
  for (size_t t = 0; t < sizes.size(); ++t)
    list.push_back({{params[t].data(), full[t].data(), forget[t].data()}, sizes[t], dtype<P>(), dtype<I>()});
  for_each_table(list, [&](const TensorTable<3>& table, DType written, DType read) {
    ssd_dampen(table, written, read, rule, counts.data(), nullptr);
  });
  for (size_t t = 0; t < sizes.size(); ++t) {
    int64_t count = 0;
    for (int64_t i = 0; i < sizes[t]; ++i) {
      const double a = value_of(full[t][i]), b = value_of(forget[t][i]), p = value_of(before[t][i]);
      // A threshold met to within rounding may fall either way.
      if (std::abs(b - rule.alpha * a) < 1e-5) {
        count += value_of(params[t][i]) != p;
        continue;
      }
      const bool selected = b > rule.alpha * a;
      const double factor = std::min(std::pow(rule.lam * a / b, rule.exponent), rule.bound);
      check_close("param", i, selected ? p * factor : p, value_of(params[t][i]), 4 * rounding<P>() + 1e-6);
      count += selected;
    }
    check(std::abs(count - counts[t]) <= 1, "count", t, count, counts[t]);
  }
}

int main(int argc, char** argv) {
  return run(argc, argv, [] {
    test<float, float>({1, 4096, 0, 4097, 33, 9001}, {1.5, 1, 1, 1});
    test<double, double>({255, 5000}, {2, 0.5, 1, 1});
    test<float, double>({777}, {1, 1, 0.5, 0.8});
    test<__half, float>({4099, 3}, {1, 1, 2, 1});
    test<__nv_bfloat16, __nv_bfloat16>({513}, {3, 1, 1, 1});
    test<float, float>({}, {1, 1, 1, 1});
    test<float, float>({0}, {1, 1, 1, 1});
    for (const int count : kListLengths) test<float, float>(list_sizes(count), {1.5, 1, 1, 1});
  });
}
