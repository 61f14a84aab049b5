#include "cuda/linear_grad.cuh"

#include "harness.h"

using namespace harness;
using namespace unlearnx::cuda;

template <typename T>
void test(int64_t samples, int64_t positions, int64_t outputs, int64_t inputs, bool paired, bool weighted) {
  const int64_t rows = samples * positions;
  const auto x = uniform<T>(rows * inputs, -1, 1), dy = uniform<T>(rows * outputs, -1, 1);
  const auto x_new = uniform<T>(rows * inputs, -1, 1), dy_new = uniform<T>(rows * outputs, -1, 1);
  const auto weight = uniform<Compute<T>>(samples, 0, 2);
  std::vector<T> out(samples * outputs * inputs, static_cast<T>(NAN));
  linear_grad_rows({x.data(), dy.data(), paired ? x_new.data() : nullptr, paired ? dy_new.data() : nullptr,
                    weighted ? weight.data() : nullptr, samples, positions, outputs, inputs},
                   dtype<T>(), out.data(), nullptr);
  for (int64_t i = 0; i < samples; ++i)
    for (int64_t o = 0; o < outputs; ++o)
      for (int64_t k = 0; k < inputs; ++k) {
        double sum = 0;
        for (int64_t t = i * positions; t < (i + 1) * positions; ++t) {
          const double old = value_of(dy[t * outputs + o]) * value_of(x[t * inputs + k]);
          sum += paired ? value_of(dy_new[t * outputs + o]) * value_of(x_new[t * inputs + k]) - old : old;
        }
        if (weighted) sum *= value_of(weight[i]);
        const int64_t place = (i * outputs + o) * inputs + k;
        check_close("d", place, sum, value_of(out[place]), 2 * rounding<T>() + 1e-6 * positions);
      }
}

int main(int argc, char** argv) {
  return run(argc, argv, [] {
    test<float>(1, 1, 1, 1, false, false);
    test<float>(3, 17, 65, 67, true, true);
    test<float>(2, 16, 64, 64, false, true);
    test<double>(2, 5, 3, 129, true, false);
    test<__half>(2, 3, 7, 5, true, true);
    test<__nv_bfloat16>(1, 33, 66, 2, false, false);
    test<float>(2, 0, 3, 4, true, false);
    test<float>(0, 4, 3, 4, true, true);
    test<float>(4, 2, 0, 5, false, false);
  });
}
