// Per-sample products dy_i^T x_i, a cache-sized tile at a time.
//
// A tile is a range of outputs and columns. For every sample its operands are packed into scratch (unfolding a
// convolution's input on the way), multiplied block by block in registers, and finished while in the nearest cache:
// squared into a sum, added up, or written out. Tiles and blocks of samples follow from the shapes alone, so results
// do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "common/parallel.h"
#include "cpu/tile_kernels.h"

namespace unlearnx::cpu {

/// Samples of one layer. With two pairs, the first is subtracted from the second.
template <typename In>
struct Operands {
  const In *x[2], *dy[2];
  int pairs;
  int64_t samples, positions, groups;
  int64_t rows;              // positions of all samples; only the last sample may have fewer than `positions`
  int64_t outputs, columns;  // of a group
  int64_t x_sample;          // values between neighbouring samples of x
  bool unfolded;             // x is an image read through `window`; else rows of `columns` values
  Window window;
  bool squared;  // x enters squared
};

struct Tile {
  int64_t group, output, outputs, column, columns, sample, samples;
};

constexpr int64_t kDepth = 256;        // positions packed at a time: a panel of them stays in the first-level cache
constexpr int64_t kTileOutputs = 256;  // packed operands and results of a tile stay in the second-level cache
constexpr int64_t kTileColumns = 256;
constexpr int64_t kTasks = 32;       // of one call: enough for many cores, few enough that sums by task stay small
constexpr int64_t kTaskDepth = 512;  // positions of a task at least: with fewer, its sums cost more than its products

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

/// Cuts n into equal parts of at most `most`, each but the last a multiple of `unit`.
inline int64_t part_size(int64_t n, int64_t most, int64_t unit) {
  const int64_t parts = std::max<int64_t>(1, ceil_div(n, most));
  return std::max<int64_t>(unit, ceil_div(ceil_div(n, parts), unit) * unit);
}

struct Free {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t(64)); }
};

/// n values, not set, from the start of a cache line.
template <typename T>
std::unique_ptr<T[], Free> scratch(int64_t n) {
  return std::unique_ptr<T[], Free>(static_cast<T*>(::operator new(sizeof(T) * n, std::align_val_t(64))));
}

/// All tiles of a problem; samples are split only as far as needed to have kTasks of them, and kTaskDepth allows.
template <typename In, typename T>
std::vector<Tile> tiles_of(const Operands<In>& o) {
  const auto& kernels = tile_kernels<In, T>();
  const int64_t height = part_size(o.outputs, kTileOutputs, kernels.rows);
  const int64_t width = part_size(o.columns, kTileColumns * 4 / static_cast<int64_t>(sizeof(T)), kernels.columns);
  const int64_t areas = o.groups * ceil_div(o.outputs, height) * ceil_div(o.columns, width);
  const int64_t wanted = ceil_div(kTasks, std::max<int64_t>(areas, 1));
  const int64_t parts = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(o.samples, 1));
  const int64_t least = ceil_div(kTaskDepth, std::max<int64_t>(o.positions, 1));
  const int64_t block = std::max<int64_t>({1, ceil_div(o.samples, parts), std::min(least, o.samples)});
  std::vector<Tile> tiles;
  for (int64_t s = 0; s < o.samples; s += block)
    for (int64_t g = 0; g < o.groups; ++g)
      for (int64_t r = 0; r < o.outputs; r += height)
        for (int64_t c = 0; c < o.columns; c += width)
          tiles.push_back({g, r, std::min(height, o.outputs - r), c, std::min(width, o.columns - c), s,
                           std::min(block, o.samples - s)});
  return tiles;
}

/// Works out the products of one tile; reused for its samples one after the other.
template <typename In, typename T>
class TileProduct {
 public:
  TileProduct(const Operands<In>& operands, const Tile& tile)
      : kernels(tile_kernels<In, T>()),
        block_size(int64_t(kernels.rows) * kernels.columns),
        block_rows(ceil_div(tile.outputs, kernels.rows)),
        block_columns(ceil_div(tile.columns, kernels.columns)),
        o_(operands),
        tile_(tile),
        length_(std::clamp<int64_t>(operands.positions, 1, kDepth / operands.pairs)),
        a_(scratch<T>(o_.pairs * kernels.depth_of(length_) * block_rows * kernels.rows)),
        b_(scratch<T>(o_.pairs * kernels.depth_of(length_) * block_columns * kernels.columns)),
        results_(scratch<T>(operands.positions > length_ ? size() : block_size)) {
    if (kernels.enter) kernels.enter();
  }
  ~TileProduct() {
    if (kernels.leave) kernels.leave();
  }
  TileProduct(const TileProduct&) = delete;
  TileProduct& operator=(const TileProduct&) = delete;

  int64_t size() const { return block_rows * block_columns * block_size; }

  /// Calls finish(block number, block) with factor * d_i, block by block.
  template <typename Finish>
  void each_block(int64_t sample, T factor, const Finish& finish) {
    const int64_t last = steps(sample) - 1;
    for (int64_t step = 0; step <= last; ++step) {
      const int64_t depth = pack(sample, step);
      for_blocks(
          [&](int64_t block, const T* a, const T* b) {
            T* const result = results_.get() + (last > 0 ? block * block_size : 0);
            (step == 0 ? kernels.assign : kernels.add)(depth, a, b, factor, result);
            if (step == last) finish(block, result);
          },
          depth);
    }
  }

  /// sums += factor * d_i
  void add(int64_t sample, T factor, T* sums) {
    for (int64_t step = 0; step < steps(sample); ++step) {
      const int64_t depth = pack(sample, step);
      for_blocks(
          [&](int64_t block, const T* a, const T* b) { kernels.add(depth, a, b, factor, sums + block * block_size); },
          depth);
    }
  }

  /// squares += weight * d_i^2
  void add_squares(int64_t sample, T weight, T* squares) {
    if (steps(sample) != 1) {
      each_block(sample, T(1), [&](int64_t block, const T* result) {
        kernels.add_squares(block_size, result, weight, squares + block * block_size);
      });
      return;
    }
    const int64_t depth = pack(sample, 0);  // from registers into the sum
    for_blocks([&](int64_t block, const T* a,
                   const T* b) { kernels.add_product_square(depth, a, b, weight, squares + block * block_size); },
               depth);
  }

  /// Writes one block to its place in a row-major matrix (groups * outputs, columns).
  void store(int64_t block, const T* values, T* matrix) const {
    const int64_t row = block % block_rows * kernels.rows, column = block / block_rows * kernels.columns;
    const int64_t rows = std::min<int64_t>(kernels.rows, tile_.outputs - row);
    const int64_t columns = std::min<int64_t>(kernels.columns, tile_.columns - column);
    T* to = matrix + (tile_.group * o_.outputs + tile_.output + row) * o_.columns + tile_.column + column;
    for (int64_t r = 0; r < rows; ++r) std::copy_n(values + r * kernels.columns, columns, to + r * o_.columns);
  }

 private:
  template <typename Work>
  void for_blocks(const Work& work, int64_t depth) {
    for (int64_t c = 0; c < block_columns; ++c)
      for (int64_t r = 0; r < block_rows; ++r)
        work(c * block_rows + r, a_.get() + r * depth * kernels.rows, b_.get() + c * depth * kernels.columns);
  }

  int64_t positions(int64_t sample) const { return std::min(o_.positions, o_.rows - sample * o_.positions); }
  /// Products of packed operands that a sample takes: positions are packed `length_` at a time, of every pair.
  int64_t steps(int64_t sample) const { return ceil_div(positions(sample), length_); }

  /// Packs the operands of a step; returns the depth of their panels.
  int64_t pack(int64_t sample, int64_t step) {
    const int64_t begin = step * length_, end = std::min(begin + length_, positions(sample));
    const int64_t count = end - begin, row = o_.groups * o_.outputs;
    const int64_t share = kernels.depth_of(count), depth = o_.pairs * share;
    for (int pair = 0; pair < o_.pairs; ++pair) {
      const In* dy = o_.dy[pair] + (sample * o_.positions + begin) * row + tile_.group * o_.outputs + tile_.output;
      kernels.pack_outputs(dy, row, count, tile_.outputs, pair + 1 < o_.pairs, depth,
                           a_.get() + pair * share * kernels.rows);
      const In* x = o_.x[pair] + sample * o_.x_sample;
      T* const b = b_.get() + pair * share * kernels.columns;
      if (o_.unfolded)
        kernels.pack_unfolded(x + tile_.group * o_.window.channels, o_.window, begin, end, tile_.column, tile_.columns,
                              depth, b);
      else
        kernels.pack_inputs(x + begin * o_.columns + tile_.column, o_.columns, count, tile_.columns, depth, b);
    }
    if (o_.squared) kernels.square(depth * block_columns * kernels.columns, b_.get());
    return depth;
  }

 public:
  const TileKernels<In, T>& kernels;
  const int64_t block_size, block_rows, block_columns;

 private:
  const Operands<In>& o_;
  const Tile tile_;
  const int64_t length_;
  std::unique_ptr<T[], Free> a_, b_, results_;
};

/// sum_i over a matrix (groups * outputs, columns): accumulate(product, sample, sums) adds sample i's share.
template <typename In, typename T, typename Accumulate>
void sum_tiles(const Operands<In>& o, T* matrix, const Accumulate& accumulate) {
  const auto tiles = tiles_of<In, T>(o);
  const int64_t size = o.groups * o.outputs * o.columns;
  const int64_t parts = tiles.empty() ? 0 : ceil_div(o.samples, tiles.front().samples);
  const std::unique_ptr<T[]> rest(parts > 1 ? new T[(parts - 1) * size] : nullptr);  // the first goes to `matrix`
  parallel_for(0, static_cast<int64_t>(tiles.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const Tile& tile = tiles[t];
      TileProduct<In, T> product(o, tile);
      const std::unique_ptr<T[]> sums(new T[product.size()]());
      for (int64_t i = tile.sample; i < tile.sample + tile.samples; ++i) accumulate(product, i, sums.get());
      const int64_t part = tile.sample / tiles.front().samples;
      T* const to = part == 0 ? matrix : rest.get() + (part - 1) * size;
      for (int64_t block = 0; block < product.block_rows * product.block_columns; ++block)
        product.store(block, sums.get() + block * product.block_size, to);
    }
  });
  if (parts == 0) std::fill_n(matrix, size, T(0));
  if (parts <= 1) return;
  parallel_for(0, size, 1 << 14, [&](int64_t begin, int64_t end) {
    for (int64_t part = 0; part + 1 < parts; ++part)
      for (int64_t k = begin; k < end; ++k) matrix[k] += rest[part * size + k];
  });
}

/// matrix = sum_i w_i d_i; weight may be null.
template <typename In, typename T>
void sum_differences(const Operands<In>& o, const T* weight, T* matrix) {
  sum_tiles<In, T>(o, matrix, [&](TileProduct<In, T>& product, int64_t i, T* sums) {
    product.add(i, weight ? weight[i] : T(1), sums);
  });
}

/// matrix = sum_i w_i d_i^2; weight may be null.
template <typename In, typename T>
void sum_squares(const Operands<In>& o, const T* weight, T* matrix) {
  sum_tiles<In, T>(o, matrix, [&](TileProduct<In, T>& product, int64_t i, T* sums) {
    product.add_squares(i, weight ? weight[i] : T(1), sums);
  });
}

/// Calls work(product, tile, i) for all tiles and their samples; tiles are in parallel.
template <typename In, typename T, typename Work>
void for_samples(const Operands<In>& o, const std::vector<Tile>& tiles, const Work& work) {
  parallel_for(0, static_cast<int64_t>(tiles.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      TileProduct<In, T> product(o, tiles[t]);
      for (int64_t i = tiles[t].sample; i < tiles[t].sample + tiles[t].samples; ++i) work(product, t, i);
    }
  });
}

/// rows[i] = w_i d_i as (groups * outputs, columns) each; weight may be null.
template <typename In, typename T>
void each_difference(const Operands<In>& o, const T* weight, T* rows) {
  const int64_t size = o.groups * o.outputs * o.columns;
  if (o.positions == 0) std::fill_n(rows, o.samples * size, T(0));
  for_samples<In, T>(o, tiles_of<In, T>(o), [&](TileProduct<In, T>& product, int64_t, int64_t i) {
    product.each_block(i, weight ? weight[i] : T(1),
                       [&](int64_t block, const T* values) { product.store(block, values, rows + i * size); });
  });
}

/// norms[i] = sum of squares of d_i.
template <typename In, typename T>
void squared_norms(const Operands<In>& o, T* norms) {
  const auto tiles = tiles_of<In, T>(o);
  const int64_t block = tiles.empty() ? 1 : tiles.front().samples;
  const int64_t areas = tiles.empty() ? 0 : static_cast<int64_t>(tiles.size()) / ceil_div(o.samples, block);
  const std::unique_ptr<T[]> partial(new T[areas * o.samples]);
  for_samples<In, T>(o, tiles, [&](TileProduct<In, T>& product, int64_t t, int64_t i) {
    T norm = 0;
    product.each_block(
        i, T(1), [&](int64_t, const T* values) { norm += product.kernels.sum_squares(product.block_size, values); });
    partial[t % areas * o.samples + i] = norm;
  });
  for (int64_t i = 0; i < o.samples; ++i) {
    norms[i] = 0;
    for (int64_t area = 0; area < areas; ++area) norms[i] += partial[area * o.samples + i];
  }
}

}  // namespace unlearnx::cpu
