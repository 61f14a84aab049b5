// The CPU's engine of per-sample products on the matrix units: in plain C++, or, compiled with -DUX_AMX and
// csrc/cpu/tile_kernels.cpp for a processor that has them, with the instructions themselves.
#include <c10/util/BFloat16.h>

#include "cpu/portable_vector.h"
#include "cpu/tile_product.h"
#include "layers.h"

using namespace harness;
using c10::BFloat16;

#ifndef UX_AMX
#include "amx.h"

namespace unlearnx::cpu {
namespace {
namespace amx {
template <typename T>
using Vector = PortableVector<T>;
constexpr int kBlockRows = 4, kBlockVectors = 2;
#include "cpu/tile_kernels.inl"
//
#include "cpu/amx_kernels.inl"
}  // namespace amx
}  // namespace

template <>
const TileKernels<BFloat16, float>& tile_kernels() {
  static const auto kernels = amx::kernels();
  return kernels;
}

}  // namespace unlearnx::cpu
#endif

using namespace unlearnx::cpu;

void test(const Layer& l, bool paired, bool weighted) {
  const int64_t positions = l.output_height() * l.output_width();
  const int64_t inputs = l.samples * l.height * l.width * l.channels, rows = l.samples * positions * l.outputs;
  const auto data = [](int64_t n) { return uniform<BFloat16>(n, -1, 1); };
  const auto x = data(inputs), x_new = data(inputs), dy = data(rows), dy_new = data(rows);
  const auto weight = uniform<float>(l.samples, 0, 2);
  const float* w = weighted ? weight.data() : nullptr;

  Operands<BFloat16> o{};
  o.x[0] = x.data();
  o.x[1] = x_new.data();
  o.dy[0] = dy.data();
  o.dy[1] = dy_new.data();
  o.pairs = paired ? 2 : 1;
  o.samples = l.samples;
  o.positions = positions;
  o.groups = l.groups;
  o.rows = l.samples * positions;
  o.outputs = l.outputs / l.groups;
  o.columns = l.columns();
  o.x_sample = l.height * l.width * l.channels;
  o.unfolded = l.kernel_h * l.kernel_w * l.groups != 1;
  o.window = {l.height,     l.width,           l.channels / l.groups,
              l.channels,   l.output_height(), l.output_width(),
              l.kernel_h,   l.kernel_w,        l.stride_h,
              l.stride_w,   l.padding_h,       l.padding_w,
              l.dilation_h, l.dilation_w};

  std::vector<float> all(l.samples * l.size(), NAN), sum(l.size(), NAN), squares(l.size(), NAN), norms(l.samples, NAN);
  each_difference(o, w, all.data());
  sum_differences(o, w, sum.data());
  sum_squares(o, w, squares.data());
  squared_norms(o, norms.data());

  std::vector<double> expected_sum(l.size()), expected_squares(l.size());
  const double tolerance = 6e-8 * (8 + positions + l.samples);
  for (int64_t i = 0; i < l.samples; ++i) {
    std::vector<double> d(l.size());
    add_gradient(l, x.data(), dy.data(), i, paired ? -1 : 1, d);
    if (paired) add_gradient(l, x_new.data(), dy_new.data(), i, 1, d);
    const double factor = weighted ? weight[i] : 1;
    double norm = 0;
    for (int64_t k = 0; k < l.size(); ++k) {
      check_close("row", i * l.size() + k, factor * d[k], all[i * l.size() + k], tolerance);
      norm += d[k] * d[k];
      expected_sum[k] += factor * d[k];
      expected_squares[k] += factor * d[k] * d[k];
    }
    check_close("norm", i, norm, norms[i], 2 * tolerance);
  }
  for (int64_t k = 0; k < l.size(); ++k) {
    check_close("sum", k, expected_sum[k], sum[k], 4 * tolerance);
    check_close("sum of squares", k, expected_squares[k], squares[k], 4 * tolerance);
  }
}

int main(int argc, char** argv) {
  check(tile_kernels<BFloat16, float>().enter != nullptr, "matrix units", 0, 1, 0);
  return run(argc, argv, [] {
    // Blocks with edges, positions that fill no chunk, one step and several, one tile and several.
    test(linear(1, 1, 1, 1), false, false);
    test(linear(3, 5, 33, 31), true, true);
    test(linear(2, 64, 32, 64), false, true);
    test(linear(2, 33, 290, 70), true, false);
    test(linear(2, 300, 20, 36), true, true);
    test(linear(1, 257, 3, 280), false, true);
    test(linear(0, 4, 3, 4), true, true);
    test({2, 20, 5, 3, 17}, true, true);
    test({3, 3, 5, 7, 24, 3, 3, 1, 1, 1, 1}, true, true);
    test({2, 8, 7, 9, 20, 3, 2, 2, 3, 1, 0, 1, 1}, false, true);
    test({1, 20, 6, 5, 20, 3, 3, 2, 1, 5, 4, 2, 1}, true, false);
    test({2, 6, 4, 5, 51, 5, 3, 1, 1, 2, 1, 1, 1, 3}, false, true);
    test({2, 36, 19, 18, 40, 3, 3, 1, 1, 1, 1}, false, true);
    test({2, 4, 12, 11, 4, 3, 3, 1, 2, 3, 2, 3, 2, 4}, false, false);
  });
}
