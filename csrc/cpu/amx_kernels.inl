// Products of bfloat16 on the matrix units of x86 processors (AMX), added up in float32. Included where
// tile_kernels.inl is, for its packing and epilogues.
//
// A tile register holds 16 rows of 64 bytes. TDPBF16PS adds to 16 x 16 float32 results the products of 16 rows of 32
// positions with 16 rows of 16 columns, each a pair of positions side by side; so a block of 32 x 32 results takes four
// registers of results and two of either operand. A panel of x keeps its pairs of positions one after the other; one of
// dy is cut into chunks of 32 positions, and in those every row has its positions side by side.

constexpr int kSide = 16;              // rows of a tile, and 32-bit words in one of them
constexpr int kBlock = 2 * kSide;      // rows and columns of a block of results
constexpr int kChunk = 2 * kSide;      // positions in a row of a tile
constexpr int64_t kRows = 8 * kChunk;  // positions unfolded at a time: they stay in the first-level cache
constexpr int kLine = kSide * 4;       // bytes in a row of a tile

typedef uint16_t Halves __attribute__((vector_size(kSide * 2)));
typedef uint32_t Words __attribute__((vector_size(kSide * 4)));

/// What LDTILECFG reads: eight tiles of 16 rows and 64 bytes.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {kLine, kLine, kLine, kLine, kLine, kLine, kLine, kLine};
  uint8_t rows[16] = {kSide, kSide, kSide, kSide, kSide, kSide, kSide, kSide};
};

void enter() {
  static const TileShapes shapes;
  _tile_loadconfig(&shapes);
}

void leave() {
  _tile_release();
}

template <Epilogue kEpilogue>
void multiply_tiles(int64_t depth, const float* a, const float* b, float weight, float* result) {
  using V = Vector<float>;
  alignas(64) float sums[kBlock * kBlock];
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t d = 0; d < depth; d += kSide, a += kSide * kBlock, b += kSide * kBlock) {
    _tile_loadd(4, a, kLine);
    _tile_loadd(5, a + kSide * kSide, kLine);
    _tile_loadd(6, b, 2 * kLine);
    _tile_loadd(7, b + kSide, 2 * kLine);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, 2 * kLine);
  _tile_stored(1, sums + kSide, 2 * kLine);
  _tile_stored(2, sums + kSide * kBlock, 2 * kLine);
  _tile_stored(3, sums + kSide * kBlock + kSide, 2 * kLine);
  const auto weights = V::broadcast(weight);
  for (int i = 0; i < kBlock * kBlock; i += V::kWidth)
    V::store(result + i, finished<kEpilogue, float>(V::load(sums + i), weights, result + i));
}

/// Two rows of 16 values, pair by pair.
UX_INLINE void interleave(const uint16_t* even, const uint16_t* odd, Words& pairs) {
  Halves first, second;
  std::memcpy(&first, even, sizeof(first));
  std::memcpy(&second, odd, sizeof(second));
  pairs = __builtin_convertvector(first, Words) | __builtin_convertvector(second, Words) << 16;
}

/// Exchanges the blocks off the diagonal in blocks of 2 kHalf x 2 kHalf words.
template <int kHalf>
UX_INLINE void exchange(Words (&rows)[kSide]) {
  Words upper, lower;
  for (int lane = 0; lane < kSide; ++lane) {
    upper[lane] = lane & kHalf ? kSide + lane - kHalf : lane;
    lower[lane] = lane & kHalf ? kSide + lane : lane + kHalf;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kSide; ++i)
    if (!(i & kHalf)) {
      const Words above = rows[i], below = rows[i + kHalf];
      rows[i] = __builtin_shuffle(above, below, upper);
      rows[i + kHalf] = __builtin_shuffle(above, below, lower);
    }
}

UX_INLINE void transpose(Words (&rows)[kSide]) {
  exchange<8>(rows);
  exchange<4>(rows);
  exchange<2>(rows);
  exchange<1>(rows);
}

/// 32 positions of 32 columns of x.
void pack_chunk(const uint16_t* rows, uint32_t* panel) {
  for (int pair = 0; pair < kSide; ++pair, rows += 2 * kBlock, panel += kBlock)
    for (int half = 0; half < kBlock; half += kSide) {
      Words words;
      interleave(rows + half, rows + kBlock + half, words);
      std::memcpy(panel + half, &words, sizeof(words));
    }
}

/// 32 positions of 32 rows of dy.
void pack_chunk_transposed(const uint16_t* rows, uint32_t signs, uint32_t* panel) {
  for (int half = 0; half < kBlock; half += kSide) {
    Words words[kSide];
#pragma GCC unroll 16
    for (int pair = 0; pair < kSide; ++pair) {
      interleave(rows + 2 * pair * kBlock + half, rows + (2 * pair + 1) * kBlock + half, words[pair]);
      words[pair] ^= signs;
    }
    transpose(words);
    std::memcpy(panel + half * kSide, words, sizeof(words));
  }
}

/// Packs `count` positions of `n` columns, panel by panel: fetch(begin, end, column, columns, rows) writes some
/// positions of at most 32 columns as rows of 32, and pack(rows, panel) packs 32 of them.
template <typename Fetch, typename Pack>
void pack_panels(int64_t count, int64_t n, int64_t depth, float* panels, const Fetch& fetch, const Pack& pack) {
  alignas(64) uint16_t rows[kRows * kBlock];
  for (int64_t column = 0; column < n; column += kBlock, panels += depth * kBlock) {
    auto* panel = reinterpret_cast<uint32_t*>(panels);
    for (int64_t begin = 0; begin < count; begin += kRows) {
      const int64_t end = std::min(begin + kRows, count), whole = (end - begin + kChunk - 1) / kChunk * kChunk;
      fetch(begin, end, column, std::min<int64_t>(kBlock, n - column), rows);
      zero_rows<kBlock>(whole - (end - begin), kBlock, rows + (end - begin) * kBlock);
      for (int64_t t = 0; t < whole; t += kChunk, panel += kSide * kBlock) pack(rows + t * kBlock, panel);
    }
  }
}

/// Fetches rows of a matrix, `stride` apart.
inline auto rows_of(const c10::BFloat16* source, int64_t stride) {
  return [=](int64_t begin, int64_t end, int64_t column, int64_t columns, uint16_t* rows) {
    const auto* from = reinterpret_cast<const uint16_t*>(source) + begin * stride + column;
    pack_rows<kBlock>(from, stride, end - begin, columns, 0, rows);
  };
}

void pack_output_tiles(const c10::BFloat16* source, int64_t stride, int64_t count, int64_t n, bool negated,
                       int64_t depth, float* panels) {
  const uint32_t signs = negated ? 0x80008000u : 0;
  pack_panels(count, n, depth, panels, rows_of(source, stride),
              [&](const uint16_t* rows, uint32_t* panel) { pack_chunk_transposed(rows, signs, panel); });
}

void pack_input_tiles(const c10::BFloat16* source, int64_t stride, int64_t count, int64_t n, int64_t depth,
                      float* panels) {
  pack_panels(count, n, depth, panels, rows_of(source, stride), &pack_chunk);
}

void pack_unfolded_tiles(const c10::BFloat16* image, const Window& window, int64_t begin, int64_t end, int64_t column,
                         int64_t n, int64_t depth, float* panels) {
  const auto fetch = [&](int64_t first, int64_t last, int64_t c, int64_t columns, uint16_t* rows) {
    unfold<kBlock>(reinterpret_cast<const uint16_t*>(image), window, begin + first, begin + last, column + c, columns,
                   0, rows);
  };
  pack_panels(end - begin, n, depth, panels, fetch, &pack_chunk);
}

/// Of bfloat16 alone; a difference of two pairs and weights lose nothing to it: signs are exact, weights come after.
TileKernels<c10::BFloat16, float> kernels() {
  return {kBlock,
          kBlock,
          kChunk,
          2,
          &multiply_tiles<Epilogue::Assign>,
          &multiply_tiles<Epilogue::Add>,
          &multiply_tiles<Epilogue::AddSquare>,
          &add_squares<float>,
          &sum_squares<float>,
          nullptr,
          &pack_output_tiles,
          &pack_input_tiles,
          &pack_unfolded_tiles,
          &enter,
          &leave};
}
