#include "cuda/softmax_linear.cuh"

#include <memory>

#include "harness.h"

using namespace harness;
using namespace unlearnx::cuda;

template <typename T>
void test_rows(int64_t samples, int64_t classes, int64_t sides) {
  const auto p = uniform<T>(samples * classes, 0, 1), before = uniform<T>(samples * classes * sides, -1, 1);
  auto u = before;
  const double factor = 0.25;
  softmax_rows(p.data(), u.data(), samples, classes, sides, factor, sizeof(T) == 8, nullptr);
  for (int64_t i = 0; i < samples; ++i)
    for (int64_t k = 0; k < sides; ++k) {
      const auto place = [&](int64_t c) { return (i * classes + c) * sides + k; };
      double mean = 0;
      for (int64_t c = 0; c < classes; ++c) mean += double(p[i * classes + c]) * before[place(c)];
      for (int64_t c = 0; c < classes; ++c)
        check_close("u", place(c), p[i * classes + c] * factor * (before[place(c)] - mean), u[place(c)],
                    rounding<T>() * (8 + 4 * classes));
    }
}

/// Some iterations with made-up products, against the same in float64, stopping each right-hand side by itself.
template <typename T>
void test_lissa(int64_t classes, int64_t sides, int64_t features, int64_t patience, int64_t iterations) {
  const int64_t n = classes * sides * features;
  const double keep = 0.9, inverse_scale = 0.5;
  auto h = uniform<T>(n, -1, 1);
  const auto v = uniform<T>(n, -1, 1);
  std::vector<double> expected(h.begin(), h.end());
  std::vector<T> history(iterations * sides, T(NAN));
  std::vector<double> partial(lissa_partials(classes, sides, features)), smallest(sides, INFINITY);
  std::vector<int64_t> since(sides, 0);
  const std::unique_ptr<bool[]> active(new bool[sides]);
  std::fill_n(active.get(), sides, true);
  LissaState state{h.data(),        v.data(),     nullptr,       history.data(), partial.data(),
                   smallest.data(), since.data(), active.get(),  classes,        sides,
                   features,        keep,         inverse_scale, patience,       sizeof(T) == 8};
  std::vector<double> best(sides, INFINITY);
  std::vector<int64_t> age(sides, 0);
  std::vector<bool> stopped(sides, false);
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
    auto hv = uniform<T>(n, -1, 1);
    if (iteration == 3 && n) hv[n - 1] = INFINITY;  // the last right-hand side overflows
    state.hv = hv.data();
    lissa_iteration(state, iteration, nullptr);
    std::vector<double> change(sides, 0);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t side = i / features % sides;
      if (stopped[side]) continue;
      const double next = v[i] + keep * expected[i] - hv[i] * inverse_scale;
      change[side] += std::abs(next - expected[i]);
      expected[i] = next;
    }
    for (int64_t k = 0; k < sides && n; ++k) {
      const double got = history[iteration * sides + k];
      if (stopped[k]) {
        check(std::isnan(got), "history of a stopped side", iteration, NAN, got);
      } else if (!std::isfinite(change[k])) {
        check(!std::isfinite(got), "overflow in the history", iteration, change[k], got);
        stopped[k] = true;
      } else {
        check_close("history", iteration * sides + k, change[k], got, 8 * rounding<T>() * (8 + iteration));
        stopped[k] = change[k] > best[k] && age[k] >= patience;
        if (change[k] < best[k]) best[k] = change[k], age[k] = 1;
        ++age[k];
      }
      check(active[k] != stopped[k], "active", k, !stopped[k], active[k]);
    }
  }
  for (int64_t i = 0; i < n; ++i)
    if (std::isfinite(expected[i])) check_close("h", i, expected[i], h[i], rounding<T>() * (8 + 4 * iterations));
}

int main(int argc, char** argv) {
  return run(argc, argv, [] {
    test_rows<float>(1, 1, 1);
    test_rows<float>(37, 10, 3);
    test_rows<float>(9, 33, 33);  // many right-hand sides: a thread for each
    test_rows<float>(11, 65, 3);  // many classes, few right-hand sides: a warp for each
    test_rows<double>(300, 2, 1);
    test_rows<double>(5, 40, 1);
    test_rows<float>(0, 3, 2);
    test_rows<float>(3, 3, 0);
    test_lissa<float>(3, 5, 1027, 2, 9);
    test_lissa<float>(1, 1, 1, 3, 9);
    test_lissa<float>(2, 33, 7, 3, 12);
    test_lissa<double>(33, 3, 65, 2, 9);
    test_lissa<double>(2, 2, 2049, 100, 6);
    test_lissa<float>(2, 0, 5, 2, 4);
  });
}
