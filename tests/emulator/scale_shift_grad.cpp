#include "cuda/scale_shift_grad.cuh"

#include "harness.h"

using namespace harness;
using namespace unlearnx::cuda;

template <typename T>
void test(int64_t samples, int64_t outer, int64_t channels, int64_t inner, bool normalised) {
  using C = Compute<T>;
  const int64_t n = samples * outer * channels * inner, half = samples * channels;
  const auto x = uniform<T>(n, -1, 1), dy = uniform<T>(n, -1, 1);
  const auto mean = uniform<C>(channels, -1, 1), rstd = uniform<C>(channels, 0, 3);
  std::vector<C> rows(2 * half, C(NAN));
  const C *pmean = normalised ? mean.data() : nullptr, *prstd = normalised ? rstd.data() : nullptr;
  scale_shift_rows({x.data(), dy.data(), pmean, prstd, samples, outer, channels, inner}, dtype<T>(), rows.data(),
                   nullptr);
  for (int64_t i = 0; i < samples; ++i)
    for (int64_t c = 0; c < channels; ++c) {
      double scale = 0, shift = 0;
      for (int64_t o = 0; o < outer; ++o)
        for (int64_t k = 0; k < inner; ++k) {
          const int64_t place = ((i * outer + o) * channels + c) * inner + k;
          const double x_hat =
              normalised ? (value_of(x[place]) - value_of(mean[c])) * value_of(rstd[c]) : value_of(x[place]);
          scale += value_of(dy[place]) * x_hat;
          shift += value_of(dy[place]);
        }
      const double tolerance = rounding<C>() * (8 + 4 * outer * inner);
      check_close("scale", i * channels + c, scale, value_of(rows[i * channels + c]), tolerance);
      check_close("shift", i * channels + c, shift, value_of(rows[half + i * channels + c]), tolerance);
    }
}

int main(int argc, char** argv) {
  return run(argc, argv, [] {
    test<float>(1, 1, 1, 1, false);
    test<float>(3, 19, 33, 1, true);  // channels fastest in memory
    test<float>(2, 1, 65, 1, false);
    test<float>(3, 1, 9, 67, true);  // positions fastest
    test<float>(2, 3, 17, 5, false);
    test<double>(2, 9, 31, 1, true);
    test<double>(2, 2, 3, 40, true);
    test<__half>(2, 11, 40, 1, false);
    test<__nv_bfloat16>(2, 1, 8, 33, true);
    test<float>(2, 0, 5, 1, true);
    test<float>(2, 1, 5, 0, true);
    test<float>(0, 3, 5, 1, false);
    test<float>(3, 3, 0, 1, false);
  });
}
