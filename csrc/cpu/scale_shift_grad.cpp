#include "ops/scale_shift_grad.h"

#include <algorithm>
#include <memory>

#include "common/clones.h"
#include "common/dispatcher.h"
#include "common/parallel.h"
#include "cpu/convert.h"

namespace unlearnx::cpu {
namespace {

constexpr int64_t kColumns = 64;  // channels a pass: their sums and statistics stay in the nearest cache
constexpr int64_t kRows = 64;     // positions summed before the sum joins the total, so that rounding stays small

/// Channels fastest in memory: adds the rows of one strip of channels, statistics known, to scale and shift.
template <typename T>
UX_INLINE void strip_body(const T* x, const T* dy, const T* mean, int64_t stride, int64_t rows, int64_t n, T* scale,
                          T* shift) {
  T s[kColumns] = {}, b[kColumns] = {};
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < n; ++c) {
      s[c] += dy[r * stride + c] * (x[r * stride + c] - mean[c]);
      b[c] += dy[r * stride + c];
    }
  for (int64_t c = 0; c < n; ++c) {
    scale[c] += s[c];
    shift[c] += b[c];
  }
}
UX_CLONES void strip(const float* x, const float* dy, const float* mean, int64_t stride, int64_t rows, int64_t n,
                     float* scale, float* shift) {
  strip_body(x, dy, mean, stride, rows, n, scale, shift);
}
UX_CLONES void strip(const double* x, const double* dy, const double* mean, int64_t stride, int64_t rows, int64_t n,
                     double* scale, double* shift) {
  strip_body(x, dy, mean, stride, rows, n, scale, shift);
}

/// Positions fastest in memory: the sums of one channel's run of n values, in a fixed order.
template <typename T>
UX_INLINE void run_body(const T* x, const T* dy, T mean, int64_t n, T* scale, T* shift) {
  constexpr int kLanes = 32;
  T s[kLanes] = {}, b[kLanes] = {};
  const int64_t whole = n / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes)
    for (int j = 0; j < kLanes; ++j) {
      s[j] += dy[i + j] * (x[i + j] - mean);
      b[j] += dy[i + j];
    }
  for (int64_t i = whole; i < n; ++i) {
    s[0] += dy[i] * (x[i] - mean);
    b[0] += dy[i];
  }
  for (int j = 0; j < kLanes; ++j) {
    *scale += s[j];
    *shift += b[j];
  }
}
UX_CLONES void run(const float* x, const float* dy, float mean, int64_t n, float* scale, float* shift) {
  run_body(x, dy, mean, n, scale, shift);
}
UX_CLONES void run(const double* x, const double* dy, double mean, int64_t n, double* scale, double* shift) {
  run_body(x, dy, mean, n, scale, shift);
}

template <typename T>
void sample_rows(const ScaleShiftGrad& p, const T* x, const T* dy, const T* mean, const T* rstd, T* scale, T* shift) {
  std::fill_n(scale, p.channels, T(0));
  std::fill_n(shift, p.channels, T(0));
  if (p.inner == 1) {
    for (int64_t c = 0; c < p.channels; c += kColumns)
      for (int64_t r = 0; r < p.outer; r += kRows)
        strip(x + r * p.channels + c, dy + r * p.channels + c, mean + c, p.channels, std::min(kRows, p.outer - r),
              std::min(kColumns, p.channels - c), scale + c, shift + c);
  } else {
    for (int64_t o = 0; o < p.outer; ++o)
      for (int64_t c = 0; c < p.channels; ++c) {
        const int64_t begin = (o * p.channels + c) * p.inner;
        run(x + begin, dy + begin, mean[c], p.inner, scale + c, shift + c);
      }
  }
  if (rstd)
    for (int64_t c = 0; c < p.channels; ++c) scale[c] *= rstd[c];
}

template <typename T>
void all_rows(const ScaleShiftGrad& p, const Tensor& rows) {
  const Tensor x = p.x.to(type_of<T>), dy = p.dy.to(type_of<T>);
  const T *px = x.const_data_ptr<T>(), *pdy = dy.const_data_ptr<T>();
  const T* rstd = p.rstd.defined() ? p.rstd.const_data_ptr<T>() : nullptr;
  const std::unique_ptr<T[]> zeros(p.mean.defined() ? nullptr : new T[p.channels]());
  const T* mean = p.mean.defined() ? p.mean.const_data_ptr<T>() : zeros.get();
  T* out = rows.mutable_data_ptr<T>();
  const int64_t size = p.outer * p.channels * p.inner, half = p.samples * p.channels;
  parallel_for(
      0, p.samples, std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(size, 1)), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          sample_rows(p, px + i * size, pdy + i * size, mean, rstd, out + i * p.channels, out + half + i * p.channels);
      });
}

void scale_shift_rows(const ScaleShiftGrad& p, const Tensor& rows) {
  p.compute_type() == kDouble ? all_rows<double>(p, rows) : all_rows<float>(p, rows);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(unlearnx, CPU, m) {
  register_scale_shift_grad<&scale_shift_rows>(m);
}

}  // namespace unlearnx::cpu
