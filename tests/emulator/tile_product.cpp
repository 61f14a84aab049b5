#include "cuda/tile_product.cuh"

#include "layers.h"

using namespace harness;
using namespace unlearnx::cuda;

struct Options {
  bool paired, weighted;
  int multiprocessors = 1;
  bool tensor_cores = false;
  int64_t offset = 0;  // values by which the data is moved out of alignment
};

template <typename T>
void test(const Layer& l, const Options& options) {
  using C = Compute<T>;
  const int64_t positions = l.output_height() * l.output_width();
  const auto data = [&](int64_t n) { return uniform<T>(n + options.offset, -1, 1); };
  const int64_t inputs = l.samples * l.height * l.width * l.channels, rows = l.samples * positions * l.outputs;
  const auto x = data(inputs), x_new = data(inputs), dy = data(rows), dy_new = data(rows);
  const auto weight = uniform<C>(l.samples, 0, 2);
  const T *px = x.data() + options.offset, *pdy = dy.data() + options.offset;
  const T* px_new = options.paired ? x_new.data() + options.offset : nullptr;
  const T* pdy_new = options.paired ? dy_new.data() + options.offset : nullptr;

  TileProblem problem{};
  const auto narrow = [](int64_t n) { return static_cast<int>(n); };
  problem.x[0] = px;
  problem.x[1] = px_new;
  problem.dy[0] = pdy;
  problem.dy[1] = pdy_new;
  problem.window = {narrow(l.height),          narrow(l.width),          narrow(l.channels / l.groups),
                    narrow(l.output_height()), narrow(l.output_width()), narrow(l.kernel_w),
                    narrow(l.stride_h),        narrow(l.stride_w),       narrow(l.padding_h),
                    narrow(l.padding_w),       narrow(l.dilation_h),     narrow(l.dilation_w)};
  problem.pairs = options.paired ? 2 : 1;
  problem.weight = options.weighted ? weight.data() : nullptr;
  problem.samples = l.samples;
  problem.groups = l.groups;
  problem.outputs = l.outputs / l.groups;
  problem.columns = l.columns();
  const auto plan = plan_tiles(problem, dtype<T>(), {options.multiprocessors, options.tensor_cores});

  const auto buffer = [](int64_t n) { return std::vector<C>(n, C(NAN)); };
  std::vector<T> all(l.samples * l.size(), static_cast<T>(NAN));
  auto sum = buffer(l.size()), squares = buffer(l.size()), norms = buffer(l.samples);
  auto parts = buffer(plan.splits * l.size()), norm_parts = buffer(plan.norm_parts * l.samples);
  tile_rows(problem, plan, dtype<T>(), all.data(), nullptr);
  tile_sum(problem, plan, dtype<T>(), false, parts.data(), sum.data(), nullptr);
  tile_sum(problem, plan, dtype<T>(), true, parts.data(), squares.data(), nullptr);
  tile_norms(problem, plan, dtype<T>(), norm_parts.data(), norms.data(), nullptr);

  std::vector<double> expected_sum(l.size()), expected_squares(l.size());
  const double tolerance = rounding<C>() * (8 + positions + l.samples);
  for (int64_t i = 0; i < l.samples; ++i) {
    std::vector<double> d(l.size());
    add_gradient(l, px, pdy, i, options.paired ? -1 : 1, d);
    if (options.paired) add_gradient(l, px_new, pdy_new, i, 1, d);
    const double w = options.weighted ? value_of(weight[i]) : 1;
    double norm = 0;
    for (int64_t k = 0; k < l.size(); ++k) {
      check_close("row", i * l.size() + k, w * d[k], value_of(all[i * l.size() + k]), 2 * rounding<T>() + tolerance);
      norm += d[k] * d[k];
      expected_sum[k] += w * d[k];
      expected_squares[k] += w * d[k] * d[k];
    }
    check_close("norm", i, norm, value_of(norms[i]), 2 * tolerance);
  }
  for (int64_t k = 0; k < l.size(); ++k) {
    check_close("sum", k, expected_sum[k], value_of(sum[k]), 4 * tolerance);
    check_close("sum of squares", k, expected_squares[k], value_of(squares[k]), 4 * tolerance);
  }
}

int main(int argc, char** argv) {
  return run(argc, argv, [] {
    // Linear layers: tiles with edges, values one by one and 16 bytes at a time, one and several splits.
    test<float>(linear(1, 1, 1, 1), {false, false});
    test<float>(linear(2, 5, 129, 131), {true, true});
    test<float>(linear(2, 16, 128, 132), {false, true});
    test<float>(linear(2, 16, 128, 132), {true, false, 2, false, 1});
    test<float>(linear(7, 9, 20, 36), {true, true, 4});
    test<float>(linear(2, 70, 10, 60), {false, true, 2});
    test<double>(linear(3, 5, 66, 67), {true, true, 2});
    test<double>(linear(2, 19, 2, 70), {true, false});
    test<__half>(linear(2, 19, 24, 136), {true, true});
    test<__half>(linear(2, 70, 8, 24), {false, true});
    test<__nv_bfloat16>(linear(3, 33, 66, 21), {false, true, 2});
    // Nothing to add up, or nowhere to write to.
    test<float>(linear(2, 0, 3, 4), {true, true});
    test<float>(linear(0, 4, 3, 4), {true, true});
    test<float>(linear(4, 2, 0, 5), {false, false});
    test<float>(linear(4, 2, 5, 0), {false, false});
    // Convolutions: 1 x 1, strided, padded beyond the image, dilated, grouped, depthwise, one output position.
    test<float>({2, 20, 5, 3, 17}, {true, true});
    test<float>({3, 3, 5, 7, 24, 3, 3, 1, 1, 1, 1}, {true, true, 2});
    test<float>({2, 8, 7, 9, 20, 3, 2, 2, 3, 1, 0, 1, 1}, {false, true});
    test<float>({1, 20, 6, 5, 20, 3, 3, 2, 1, 5, 4, 2, 1}, {true, false});
    test<float>({2, 6, 4, 5, 51, 5, 3, 1, 1, 2, 1, 1, 1, 3}, {false, true, 3});
    test<float>({4, 2, 9, 9, 4, 3, 3, 2, 2, 1, 1, 1, 1, 2}, {true, true, 3});
    test<float>({2, 4, 12, 11, 4, 3, 3, 1, 2, 3, 2, 3, 2, 4}, {false, false});
    test<float>({2, 4, 5, 6, 18, 5, 6}, {true, true, 2});
    test<double>({3, 4, 6, 5, 34, 3, 3, 1, 1, 1, 1, 1, 1, 2}, {true, true, 2});
    test<double>({2, 5, 4, 4, 5, 2, 2, 1, 1, 1, 1, 1, 1, 5}, {false, true});
    test<__half>({2, 16, 4, 5, 16, 3, 3, 1, 1, 1, 1, 1, 1, 2}, {true, true});
    test<__nv_bfloat16>({2, 6, 5, 4, 21, 1, 3, 1, 1, 0, 1, 1, 1, 3}, {true, false});
    // Tensor cores: values one by one and 16 bytes at a time, several tiles and splits, few positions, images.
    test<__nv_bfloat16>(linear(1, 33, 65, 30), {true, true, 1, true});
    test<__nv_bfloat16>(linear(2, 17, 24, 136), {false, true, 4, true});
    test<__half>(linear(2, 3, 24, 80), {false, false, 1, true, 8});
    test<__nv_bfloat16>({1, 16, 5, 5, 24, 3, 3, 2, 1, 1, 1, 1, 1}, {false, true, 1, true});
  });
}
