// Per-sample products with a tile kept in registers: a block takes one tile of the matrix and some of the samples,
// multiplies sample after sample, and finishes each product where it is: squared into a running tile, added to it,
// written out, or reduced to its norm. Operands come through shared memory, kStages - 1 steps ahead, and images are
// unfolded by the addresses they are read from. Splits of the samples are added up in a fixed order afterwards.
#pragma once

#include "cuda/intrinsics.cuh"
#include "cuda/portable.cuh"
#include "cuda/tile_product.h"

namespace unlearnx::cuda {

constexpr int kStages = 3;  // steps in shared memory; with the tiles below they fill its 48 KiB
constexpr int kWarps = kThreads / 32;

enum class TileResult { Rows, Sum, SquareSum, Norms };

__host__ __device__ inline int positions_of(const TileProblem& p) {
  return p.window.output_height * p.window.output_width;
}

template <typename T, int N>
struct alignas(N * sizeof(T)) Values {
  T at[N];
};

// A product works on tiles of kEdge x kEdge, kDepth positions a step. A thread owns kRuns runs of kRun neighbouring
// columns of the result, at (row(run), column(run)). slot() is where a step's value lies in shared memory. kResident
// blocks at least fit on a multiprocessor.

/// Products in the compute type, one multiplication after the other.
template <typename T, int Edge, int Depth, int Resident>
struct PlainProduct {
  using Value = T;
  using C = Compute<T>;
  static constexpr int kEdge = Edge, kDepth = Depth, kResident = Resident;
  static constexpr int kSide = 16;  // threads along each side of the tile
  static constexpr int kOwn = kEdge / kSide;
  static constexpr int kRun = kOwn < 16 / int(sizeof(C)) ? kOwn : 16 / int(sizeof(C));
  static constexpr int kRuns = kOwn * kOwn / kRun;

  static __device__ __forceinline__ unsigned slot(unsigned position, unsigned column) {
    return position * kEdge + column;
  }
  static __device__ __forceinline__ int row(int run) { return place(run / (kOwn / kRun), threadIdx.x / kSide); }
  static __device__ __forceinline__ int column(int run) {
    return place(run % (kOwn / kRun) * kRun, threadIdx.x % kSide);
  }

  /// product += dy^T x over the first `positions` of a step.
  static __device__ __forceinline__ void add(const T* dy, const T* x, int positions, C (&product)[kRuns * kRun]) {
    constexpr int kUnroll = 4;
    for (int begin = 0; begin < kDepth && begin < positions; begin += kUnroll)
#pragma unroll
      for (int t = begin; t < begin + kUnroll; ++t) {
        C a[kOwn], b[kOwn];
        read(dy + t * kEdge, threadIdx.x / kSide, a);
        read(x + t * kEdge, threadIdx.x % kSide, b);
#pragma unroll
        for (int r = 0; r < kOwn; ++r)
#pragma unroll
          for (int c = 0; c < kOwn; ++c) product[r * kOwn + c] += a[r] * b[c];
      }
  }

 private:
  /// Runs of neighbouring threads are neighbours, so that a warp reads shared memory without conflicts.
  static __device__ __forceinline__ int place(int own, int thread) {
    return own / kRun * kSide * kRun + thread * kRun + own % kRun;
  }
  static __device__ __forceinline__ void read(const T* line, int thread, C (&own)[kOwn]) {
#pragma unroll
    for (int k = 0; k < kOwn; k += kRun) {
      const auto values = *reinterpret_cast<const Values<T, kRun>*>(line + place(k, thread));
#pragma unroll
      for (int i = 0; i < kRun; ++i) own[k + i] = convert<C>(values.at[i]);
    }
  }
};

/// Products of 16-bit values on tensor cores, added up in float32. Warps share the tile as 2 x 4.
template <typename T>
struct TensorProduct {
  using Value = T;
  using C = float;
  static constexpr int kEdge = 128, kDepth = 32, kResident = 1;
  static constexpr int kRows = 4, kColumns = 4;  // 16 x 8 fragments of a warp
  static constexpr int kRun = 2, kRuns = kRows * kColumns * 2;

  /// Lines of eight values trade places, so that the eight that one matrix is read from are in different banks.
  static __device__ __forceinline__ unsigned slot(unsigned position, unsigned column) {
    return position * kEdge + ((column / 8) ^ (position % 8)) * 8 + column % 8;
  }
  static __device__ __forceinline__ int row(int run) {
    return first_row() + run / 2 / kColumns * 16 + run % 2 * 8 + threadIdx.x % 32 / 4;
  }
  static __device__ __forceinline__ int column(int run) {
    return first_column() + run / 2 % kColumns * 8 + threadIdx.x % 4 * 2;
  }

  /// product += dy^T x over a whole step; positions beyond the last are zeros.
  static __device__ __forceinline__ void add(const T* dy, const T* x, int, C (&product)[kRuns * kRun]) {
    const unsigned lane = threadIdx.x % 32, high = lane / 16 * 8, middle = lane / 8 % 2 * 8;
#pragma unroll
    for (int t = 0; t < kDepth; t += 16) {
      unsigned a[kRows][4];
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        load_matrices_transposed(a[r], dy + slot(t + high + lane % 8, first_row() + r * 16 + middle));
#pragma unroll
      for (int c = 0; c < kColumns; c += 2) {
        unsigned b[4];
        load_matrices_transposed(b, x + slot(t + middle + lane % 8, first_column() + c * 8 + high));
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          multiply_add<T>(product + (r * kColumns + c) * 4, a[r], b);
          multiply_add<T>(product + (r * kColumns + c + 1) * 4, a[r], b + 2);
        }
      }
    }
  }

 private:
  static __device__ __forceinline__ unsigned first_row() { return threadIdx.x / 128 * 64; }
  static __device__ __forceinline__ unsigned first_column() { return threadIdx.x / 32 % 4 * 32; }
};

/// Copies `Count` neighbouring values, or zeros where not `inside`.
template <int Count, typename T>
__device__ __forceinline__ void copy_values(T* to, const T* from, bool inside) {
  if constexpr (Count * sizeof(T) >= 4)
    copy_async<Count * sizeof(T)>(to, from, inside);
  else
    *to = inside ? *from : convert<T>(0.0f);
}

/// One column of dy, at positions first, first + step, ... of a sample.
template <typename T>
class RowReader {
 public:
  __device__ __forceinline__ RowReader(const TileProblem& p, int64_t group, int64_t column, int first, int step)
      : p_(p),
        row_(p.groups * p.outputs),
        offset_(first * row_ + group * p.outputs + column),
        step_(step),
        // A column that is not there has no positions.
        count_(column < p.outputs ? positions_of(p) - first : 0) {}

  __device__ __forceinline__ void start(int64_t sample, int pair) {
    next_ = static_cast<const T*>(pair == 0 ? p_.dy[0] : p_.dy[1]) + sample * positions_of(p_) * row_ + offset_;
    left_ = count_;
  }

  template <int Count>
  __device__ __forceinline__ void copy(T* to) {
    copy_values<Count>(to, next_, left_ > 0);
    next_ += step_ * row_;
    left_ -= step_;
  }

 private:
  const TileProblem& p_;
  const int64_t row_, offset_;
  const int step_, count_;
  const T* next_ = nullptr;
  int left_ = 0;
};

/// One column of the unfolded x, at positions first, first + step, ... of a sample.
template <typename T>
class WindowReader {
 public:
  __device__ __forceinline__ WindowReader(const TileProblem& p, int64_t group, int64_t column, int first, int step)
      : p_(p),
        o_(p.window),
        pixel_(static_cast<int>(p.groups) * o_.channels),
        first_h_(first / o_.output_width),
        first_w_(first % o_.output_width),
        step_h_(step / o_.output_width),
        step_w_(step % o_.output_width) {
    const bool inside = column < p.columns;
    const int place = inside ? static_cast<int>(column / o_.channels) : 0;
    offset_ = group * o_.channels + (inside ? column % o_.channels : 0);
    // A column that is not there lies above every image.
    top_ = inside ? place / o_.kernel_width * o_.dilation_h - o_.padding_h : INT32_MIN;
    left_ = place % o_.kernel_width * o_.dilation_w - o_.padding_w;
  }

  __device__ __forceinline__ void start(int64_t sample, int pair) {
    image_ = static_cast<const T*>(pair == 0 ? p_.x[0] : p_.x[1]) + sample * o_.height * o_.width * pixel_ + offset_;
    h_ = first_h_;
    w_ = first_w_;
  }

  template <int Count>
  __device__ __forceinline__ void copy(T* to) {
    // Unsigned, so that one comparison tells both sides of the image; without branches, since every copy takes this.
    const unsigned y = unsigned(h_) * o_.stride_h + top_, x = unsigned(w_) * o_.stride_w + left_;
    const unsigned height = o_.height, width = o_.width;
    // Beyond the last position there may be more of the image.
    const bool inside = (h_ < o_.output_height) & (y < height) & (x < width);
    const int place = static_cast<int>(inside ? y * width + x : 0);
    copy_values<Count>(to, image_ + static_cast<int64_t>(place) * pixel_, inside);
    h_ += step_h_;
    w_ += step_w_;
    const bool wraps = w_ >= o_.output_width;
    w_ -= wraps ? o_.output_width : 0;
    h_ += wraps;
  }

 private:
  const TileProblem& p_;
  const Window& o_;
  const int pixel_;  // values between neighbouring pixels
  const int first_h_, first_w_, step_h_, step_w_;
  int64_t offset_;
  int top_, left_;
  const T* image_ = nullptr;
  int h_ = 0, w_ = 0;
};

/// The tile and the samples of this block.
struct TilePlace {
  int64_t group, output, column, split, begin, end;

  __device__ __forceinline__ TilePlace(const TileProblem& p, const TilePlan& plan, int edge) {
    const int64_t across = (p.columns + edge - 1) / edge, down = (p.outputs + edge - 1) / edge;
    // Tiles of the same samples are neighbours in the grid: their operands stay in L2.
    const int64_t tile = blockIdx.x % plan.tiles;
    split = blockIdx.x / plan.tiles;
    group = tile / (across * down);
    output = tile / across % down * edge;
    column = tile % across * edge;
    begin = split * plan.block_samples;
    end = begin + plan.block_samples < p.samples ? begin + plan.block_samples : p.samples;
  }
};

/// Both operands, step after step through all samples of the block, copied `Count` neighbouring values at a time.
template <typename Product, int Count>
class Pipeline {
  using T = typename Product::Value;
  static constexpr int kDepth = Product::kDepth, kLanes = Product::kEdge / Count;  // threads along one position
  static constexpr int kTogether = kThreads / kLanes < kDepth ? kThreads / kLanes : kDepth;  // positions at a time
  static constexpr int kOperand = kDepth * Product::kEdge;

 public:
  static constexpr int kShared = kStages * 2 * kOperand;

  __device__ __forceinline__ Pipeline(const TileProblem& p, const TilePlace& place, T* shared)
      : pairs_(p.pairs),
        positions_(positions_of(p)),
        end_(place.end),
        sample_(place.begin),
        shared_(shared),
        dy_(p, place.group, place.output + own_column(), own_position(), kTogether),
        x_(p, place.group, place.column + own_column(), own_position(), kTogether) {
    if (positions_ == 0) sample_ = end_;
    start();
    for (int stage = 0; stage + 1 < kStages; ++stage) copy_step();
  }

  /// Waits for the next step; its operands stay until the call after this one.
  __device__ __forceinline__ void next(const T** dy, const T** x) {
    wait_copies<kStages - 2>();
    __syncthreads();  // everyone's copies are there, and nobody reads the step that is overwritten now
    copy_step();
    *dy = shared_ + read_ * 2 * kOperand;
    *x = *dy + kOperand;
    read_ = read_ + 1 < kStages ? read_ + 1 : 0;
  }

 private:
  static __device__ __forceinline__ unsigned own_column() { return threadIdx.x % kLanes * Count; }
  static __device__ __forceinline__ unsigned own_position() { return threadIdx.x / kLanes; }

  __device__ __forceinline__ void start() {
    if (sample_ == end_) return;
    dy_.start(sample_, pair_);
    x_.start(sample_, pair_);
  }

  __device__ __forceinline__ void copy_step() {
    if (sample_ < end_) {
      T* const dy = shared_ + write_ * 2 * kOperand;
      copy(dy_, dy);
      copy(x_, dy + kOperand);
      advance();
    }
    commit_copies();
    write_ = write_ + 1 < kStages ? write_ + 1 : 0;
  }

  template <typename Reader>
  __device__ __forceinline__ void copy(Reader& reader, T* to) {
    // Wide copies one at a time: with two under way, sm_100 has no register left for an address and spills it.
#pragma unroll(Count == 8 ? 1 : 4)
    for (int t = 0; t < kDepth; t += kTogether)
      if (kThreads / kLanes <= kDepth || own_position() < kDepth)
        reader.template copy<Count>(to + Product::slot(t + own_position(), own_column()));
  }

  __device__ __forceinline__ void advance() {
    position_ += kDepth;
    if (position_ < positions_) return;
    position_ = 0;
    if (++pair_ == pairs_) {
      pair_ = 0;
      ++sample_;
    }
    start();
  }

  const int pairs_, positions_;
  const int64_t end_;
  int64_t sample_;  // of the next step to copy, like pair_ and position_
  T* const shared_;
  RowReader<T> dy_;
  WindowReader<T> x_;
  int pair_ = 0, position_ = 0, read_ = 0, write_ = 0;
};

/// Writes the tile to its place in matrix `number` of many, (groups * outputs, columns) each.
template <typename Product, typename Out, typename C>
__device__ __forceinline__ void store_tile(const TileProblem& p, const TilePlace& place, const C* tile, C factor,
                                           Out* matrices, int64_t number) {
  constexpr int kRun = Product::kRun;
  const int64_t first = (number * p.groups + place.group) * p.outputs;
#pragma unroll
  for (int run = 0; run < Product::kRuns; ++run) {
    const int64_t output = place.output + Product::row(run), column = place.column + Product::column(run);
    if (output >= p.outputs || column >= p.columns) continue;
    Out* const to = matrices + (first + output) * p.columns + column;
    Values<Out, kRun> values;
#pragma unroll
    for (int i = 0; i < kRun; ++i) values.at[i] = convert<Out>(factor * tile[run * kRun + i]);
    if (p.columns % kRun == 0) {
      *reinterpret_cast<Values<Out, kRun>*>(to) = values;
      continue;
    }
#pragma unroll
    for (int i = 0; i < kRun; ++i)
      if (column + i < p.columns) to[i] = values.at[i];
  }
}

/// Writes this warp's part of the squared norm of a sample's tile.
template <typename Product, typename C>
__device__ __forceinline__ void store_norm(const TileProblem& p, const TilePlan& plan, int64_t sample, const C* tile,
                                           C* parts) {
  C sum = 0;
#pragma unroll
  for (int i = 0; i < Product::kRuns * Product::kRun; ++i) sum += tile[i] * tile[i];
  for (int offset = 16; offset; offset /= 2) sum += __shfl_down_sync(0xffffffffu, sum, offset);
  const int64_t part = blockIdx.x % plan.tiles * kWarps + threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) parts[part * p.samples + sample] = sum;
}

template <typename Product, int Count>
__global__ void __launch_bounds__(kThreads, Product::kResident)
    tile_product_kernel(TileProblem p, TilePlan plan, TileResult result, void* out) {
  using T = typename Product::Value;
  using C = typename Product::C;
  constexpr int kOwn = Product::kRuns * Product::kRun;
  UX_SHARED(T, shared, (Pipeline<Product, Count>::kShared));
  const TilePlace place(p, plan, Product::kEdge);
  Pipeline<Product, Count> pipeline(p, place, shared);
  C running[kOwn] = {};
  for (int64_t sample = place.begin; sample < place.end; ++sample) {
    C product[kOwn] = {};
    for (int pair = 0; pair < p.pairs; ++pair) {
      if (pair > 0)
#pragma unroll
        for (int i = 0; i < kOwn; ++i) product[i] = -product[i];
      for (int left = positions_of(p); left > 0; left -= Product::kDepth) {
        const T *dy, *x;
        pipeline.next(&dy, &x);
        Product::add(dy, x, left, product);
      }
    }
    const C weight = p.weight ? static_cast<const C*>(p.weight)[sample] : C(1);
    switch (result) {
      case TileResult::Rows:
        store_tile<Product>(p, place, product, weight, static_cast<T*>(out), sample);
        break;
      case TileResult::Sum:
#pragma unroll
        for (int i = 0; i < kOwn; ++i) running[i] += weight * product[i];
        break;
      case TileResult::SquareSum:
#pragma unroll
        for (int i = 0; i < kOwn; ++i) running[i] += weight * product[i] * product[i];
        break;
      case TileResult::Norms:
        store_norm<Product>(p, plan, sample, product, static_cast<C*>(out));
    }
  }
  if (result == TileResult::Sum || result == TileResult::SquareSum)
    store_tile<Product>(p, place, running, C(1), static_cast<C*>(out), place.split);
}

/// sums[k] = sum of parts[part][k], in order.
template <typename C>
__global__ void __launch_bounds__(kThreads) add_parts_kernel(const C* parts, int64_t count, int64_t size, C* sums) {
  for (int64_t k = blockIdx.x * int64_t(kThreads) + threadIdx.x; k < size; k += int64_t(gridDim.x) * kThreads) {
    C sum = 0;
#pragma unroll 16
    for (int64_t part = 0; part < count; ++part) sum += parts[part * size + k];
    sums[k] = sum;
  }
}

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

/// Calls work(Type<Product>{}) for the product of a plan.
template <typename Work>
void with_product(TilePath path, DType type, const Work& work) {
  dispatch(type, [&](auto t) {
    using T = typename decltype(t)::type;
    if (path == TilePath::Small) return work(Type<PlainProduct<T, 16, 64, 3>>{});
    if constexpr (sizeof(T) == 2)
      if (path == TilePath::TensorCores) return work(Type<TensorProduct<T>>{});
    if constexpr (sizeof(T) == 8)
      work(Type<PlainProduct<T, 64, 16, 1>>{});
    else
      work(Type<PlainProduct<T, 128, 16, 1>>{});
  });
}

/// True where every `count` neighbouring columns, from a multiple of it, are neighbours in memory and aligned.
inline bool can_vectorise(const TileProblem& p, int count) {
  bool aligned = p.outputs % count == 0 && p.window.channels % count == 0;
  for (int pair = 0; pair < p.pairs; ++pair)
    for (const void* data : {p.x[pair], p.dy[pair]}) aligned &= reinterpret_cast<uintptr_t>(data) % 16 == 0;
  return aligned;
}

/// Samples a block takes: the longest block and its waves together as short as can be, with few splits.
inline int64_t choose_block_samples(int64_t samples, int64_t tiles, int64_t resident) {
  constexpr int kMostWaves = 4;
  int64_t best = samples, least = samples * ceil_div(tiles, resident);
  for (int64_t waves = 1; waves <= kMostWaves; ++waves) {
    const int64_t splits = waves * resident / tiles;
    if (splits < 2) continue;
    const int64_t block = ceil_div(samples, splits);
    const int64_t time = block * ceil_div(tiles * ceil_div(samples, block), resident);
    if (time < least) {
      best = block;
      least = time;
    }
  }
  return best;
}

TilePlan plan_tiles(const TileProblem& p, DType type, Processor processor) {
  TilePlan plan{};
  // Groups of few channels would leave most of a large tile empty, even the tensor cores'.
  if (p.outputs <= 16 && p.columns <= 64)
    plan.path = TilePath::Small;
  else if (processor.tensor_cores && (type == DType::Half || type == DType::BFloat16))
    plan.path = TilePath::TensorCores;
  else
    plan.path = TilePath::Plain;
  with_product(plan.path, type, [&](auto t) {
    using Product = typename decltype(t)::type;
    plan.vectorised = can_vectorise(p, 16 / sizeof(typename Product::Value));
    plan.tiles = p.groups * ceil_div(p.outputs, Product::kEdge) * ceil_div(p.columns, Product::kEdge);
    if (p.samples > 0 && plan.tiles > 0)
      plan.block_samples =
          choose_block_samples(p.samples, plan.tiles, int64_t(processor.multiprocessors) * Product::kResident);
  });
  plan.splits = plan.block_samples > 0 ? ceil_div(p.samples, plan.block_samples) : 1;
  plan.norm_parts = plan.tiles * kWarps;
  return plan;
}

inline void launch_tiles(const TileProblem& p, const TilePlan& plan, DType type, TileResult result, void* out,
                         cudaStream_t stream) {
  if (plan.tiles == 0) return;
  const dim3 grid(static_cast<unsigned>(plan.tiles * plan.splits));
  with_product(plan.path, type, [&](auto t) {
    using Product = typename decltype(t)::type;
    constexpr int kCount = 16 / sizeof(typename Product::Value);
    if (plan.vectorised)
      UX_LAUNCH((tile_product_kernel<Product, kCount>), grid, dim3(kThreads), stream, p, plan, result, out);
    else
      UX_LAUNCH((tile_product_kernel<Product, 1>), grid, dim3(kThreads), stream, p, plan, result, out);
  });
}

inline void add_parts(DType type, const void* parts, int64_t count, int64_t size, void* sums, cudaStream_t stream) {
  constexpr int64_t kMostBlocks = 1 << 16;
  if (size == 0) return;
  const int64_t blocks = ceil_div(size, kThreads);
  const dim3 grid(static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks));
  const auto launch = [&](auto t) {
    using C = typename decltype(t)::type;
    UX_LAUNCH(add_parts_kernel<C>, grid, dim3(kThreads), stream, static_cast<const C*>(parts), count, size,
              static_cast<C*>(sums));
  };
  type == DType::Double ? launch(Type<double>{}) : launch(Type<float>{});
}

void tile_rows(const TileProblem& p, const TilePlan& plan, DType type, void* rows, cudaStream_t stream) {
  launch_tiles(p, plan, type, TileResult::Rows, rows, stream);
}

void tile_sum(const TileProblem& p, const TilePlan& plan, DType type, bool squared, void* parts, void* matrix,
              cudaStream_t stream) {
  const auto result = squared ? TileResult::SquareSum : TileResult::Sum;
  launch_tiles(p, plan, type, result, plan.splits > 1 ? parts : matrix, stream);
  if (plan.splits > 1) add_parts(type, parts, plan.splits, p.groups * p.outputs * p.columns, matrix, stream);
}

void tile_norms(const TileProblem& p, const TilePlan& plan, DType type, void* parts, void* norms, cudaStream_t stream) {
  launch_tiles(p, plan, type, TileResult::Norms, parts, stream);
  add_parts(type, parts, plan.norm_parts, p.samples, norms, stream);
}

}  // namespace unlearnx::cuda
