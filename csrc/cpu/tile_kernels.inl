// The inner loops of tile_product.h, compiled once for each instruction set inside a namespace of its own, which
// provides Vector<T> (kWidth, Lanes, load, store, broadcast, fma) and the block of results held in registers,
// kRows x (kVectors * kWidth).

UX_INLINE float widen(float value) {
  return value;
}
UX_INLINE double widen(double value) {
  return value;
}
UX_INLINE uint16_t widen(uint16_t bits) {
  return bits;
}
UX_INLINE float widen(c10::BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.x) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

template <typename T>
struct Block {
  static constexpr int kRows = kBlockRows;
  static constexpr int kColumns = kBlockVectors * Vector<T>::kWidth;
};

/// What becomes of a product, and of what is in its place already.
template <Epilogue kEpilogue, typename T>
UX_INLINE typename Vector<T>::Lanes finished(typename Vector<T>::Lanes product, typename Vector<T>::Lanes weight,
                                             const T* place) {
  using V = Vector<T>;
  const auto weighted = V::mul(weight, product);
  if (kEpilogue == Epilogue::Add) return V::add(V::load(place), weighted);
  if (kEpilogue == Epilogue::AddSquare) return V::fma(weighted, product, V::load(place));
  return weighted;
}

/// result (+)= weight * sum_d a[d] (outer) b[d], or squares += weight * (that)^2, for one block of packed panels a and
/// b.
template <typename T, Epilogue kEpilogue>
void multiply(int64_t depth, const T* a, const T* b, T weight, T* result) {
  using V = Vector<T>;
  constexpr int kWidth = V::kWidth;
  typename V::Lanes sum[kBlockRows][kBlockVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kBlockRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kBlockVectors; ++v) sum[r][v] = V::broadcast(T(0));
  for (int64_t d = 0; d < depth; ++d) {
    typename V::Lanes columns[kBlockVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kBlockVectors; ++v) columns[v] = V::load(b + v * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < kBlockRows; ++r) {
      const auto row = V::broadcast(a[r]);
#pragma GCC unroll 4
      for (int v = 0; v < kBlockVectors; ++v) sum[r][v] = V::fma(row, columns[v], sum[r][v]);
    }
    a += kBlockRows;
    b += kBlockVectors * kWidth;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kBlockRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kBlockVectors; ++v) {
      T* place = result + (r * kBlockVectors + v) * kWidth;
      V::store(place, finished<kEpilogue, T>(sum[r][v], V::broadcast(weight), place));
    }
}

/// squares[i] += weight * values[i]^2
template <typename T>
void add_squares(int64_t n, const T* values, T weight, T* squares) {
  for (int64_t i = 0; i < n; ++i) squares[i] += weight * values[i] * values[i];
}

/// Sum of values[i]^2, in the same order on every processor of this instruction set.
template <typename T>
T sum_squares(int64_t n, const T* values) {
  T partial[16] = {};
  for (int64_t i = 0; i < n; i += 16)  // blocks hold a multiple of 16 values
    for (int j = 0; j < 16; ++j) partial[j] += values[i + j] * values[i + j];
  T total = 0;
  for (const T p : partial) total += p;
  return total;
}

template <typename T>
void square(int64_t n, T* values) {
  for (int64_t i = 0; i < n; ++i) values[i] *= values[i];
}

/// Copies `count` rows of `n` values, `stride` apart, into a panel whose rows are kPanel apart.
template <int kPanel, typename In, typename T>
inline void copy_rows(const In* source, int64_t stride, int64_t count, int n, T* panel) {
  if (n == kPanel) {
    for (int64_t t = 0; t < count; ++t)
      for (int c = 0; c < kPanel; ++c) panel[t * kPanel + c] = widen(source[t * stride + c]);
  } else {
    for (int64_t t = 0; t < count; ++t)
      for (int c = 0; c < n; ++c) panel[t * kPanel + c] = widen(source[t * stride + c]);
  }
}

template <int kPanel, typename T>
inline void zero_rows(int64_t count, int n, T* panel) {
  for (int64_t t = 0; t < count; ++t)
    for (int c = 0; c < n; ++c) panel[t * kPanel + c] = T(0);
}

/// Rows (count, n) as panels of kPanel columns, the last one filled up with zeros; a panel has `depth` rows in all.
template <int kPanel, typename In, typename T>
void pack_rows(const In* source, int64_t stride, int64_t count, int64_t n, int64_t depth, T* panels) {
  for (int64_t c = 0; c < n; c += kPanel, panels += depth * kPanel) {
    const int width = static_cast<int>(std::min<int64_t>(kPanel, n - c));
    if (width < kPanel) zero_rows<kPanel>(count, kPanel - width, panels + width);
    copy_rows<kPanel>(source + c, stride, count, width, panels);
  }
}

/// Output gradients, or their negatives, as panels of kBlockRows columns.
template <typename In, typename T>
void pack_outputs(const In* source, int64_t stride, int64_t count, int64_t n, bool negated, int64_t depth, T* panels) {
  pack_rows<kBlockRows>(source, stride, count, n, depth, panels);
  if (!negated) return;
  for (int64_t c = 0; c < n; c += kBlockRows, panels += depth * kBlockRows)
    for (int64_t i = 0; i < count * kBlockRows; ++i) panels[i] = -panels[i];
}

template <typename In, typename T>
void pack_inputs(const In* source, int64_t stride, int64_t count, int64_t n, int64_t depth, T* panels) {
  pack_rows<Block<T>::kColumns>(source, stride, count, n, depth, panels);
}

/// Columns [column, column + n) of the unfolded image at output positions [begin, end), as panels. The columns are
/// ordered (kernel row, kernel column, channel); `image` points to the group's first channel.
template <int kPanel, typename In, typename T>
void unfold(const In* image, const Window& w, int64_t begin, int64_t end, int64_t column, int64_t n, int64_t depth,
            T* panels) {
  const int64_t last = column + n;
  int64_t packed = 0;
  while (column < last) {
    const int64_t tap = column / w.channels, channel = column % w.channels;
    const int64_t row_shift = tap / w.kernel_width * w.dilation_h - w.padding_h;
    const int64_t column_shift = tap % w.kernel_width * w.dilation_w - w.padding_w;
    const int lane = static_cast<int>(packed % kPanel);
    const int width = static_cast<int>(std::min({w.channels - channel, last - column, int64_t(kPanel - lane)}));
    T* const panel = panels + packed / kPanel * kPanel * depth + lane;
    // Output columns whose input column lies inside the image.
    const int64_t low = std::max<int64_t>(0, (-column_shift + w.stride_w - 1) / w.stride_w);
    const int64_t high = w.width > column_shift ? (w.width - 1 - column_shift) / w.stride_w + 1 : 0;
    for (int64_t t = begin; t < end;) {
      const int64_t y = t / w.output_width, x0 = t % w.output_width;
      const int64_t x1 = std::min(w.output_width, x0 + end - t);
      const int64_t row = y * w.stride_h + row_shift;
      const bool inside = row >= 0 && row < w.height;
      const int64_t first = inside ? std::clamp(low, x0, x1) : x1, stop = std::clamp(high, first, x1);
      T* const to = panel + (t - begin) * kPanel;
      zero_rows<kPanel>(first - x0, width, to);
      if (stop > first) {
        const In* from = image + (row * w.width + first * w.stride_w + column_shift) * w.pixel + channel;
        copy_rows<kPanel>(from, w.stride_w * w.pixel, stop - first, width, to + (first - x0) * kPanel);
      }
      zero_rows<kPanel>(x1 - stop, width, to + (stop - x0) * kPanel);
      t += x1 - x0;
    }
    column += width;
    packed += width;
  }
  if (const int lane = static_cast<int>(packed % kPanel))
    zero_rows<kPanel>(end - begin, kPanel - lane, panels + packed / kPanel * kPanel * depth + lane);
}

template <typename In, typename T>
void pack_unfolded(const In* image, const Window& window, int64_t begin, int64_t end, int64_t column, int64_t n,
                   int64_t depth, T* panels) {
  unfold<Block<T>::kColumns>(image, window, begin, end, column, n, depth, panels);
}

template <typename In, typename T>
TileKernels<In, T> kernels() {
  return {Block<T>::kRows,
          Block<T>::kColumns,
          1,
          1,
          &multiply<T, Epilogue::Assign>,
          &multiply<T, Epilogue::Add>,
          &multiply<T, Epilogue::AddSquare>,
          &add_squares<T>,
          &sum_squares<T>,
          &square<T>,
          &pack_outputs<In, T>,
          &pack_inputs<In, T>,
          &pack_unfolded<In, T>,
          nullptr,
          nullptr};
}
