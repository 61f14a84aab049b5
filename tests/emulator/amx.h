// The instructions of Intel's matrix units in plain C++, under the names of their intrinsics. Every use is checked
// against the configuration.
#pragma once

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace amx {

inline struct {
  bool configured = false;
  int rows[8], bytes[8];
  std::array<std::array<uint32_t, 16>, 16> tile[8];
} state;

inline void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "FAILED: %s\n", what);
  std::exit(1);
}

inline void use(int tile) {
  require(state.configured && state.rows[tile] > 0 && state.bytes[tile] > 0, "tile without a configuration");
}

inline float number(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace amx

inline void _tile_loadconfig(const void* memory) {
  const auto* bytes = static_cast<const uint8_t*>(memory);
  amx::require(bytes[0] == 1, "palette 1");
  for (int i = 1; i < 16; ++i) amx::require(bytes[i] == 0, "reserved bytes of the configuration are 0");
  for (int i = 0; i < 16; ++i) {
    const int width = bytes[16 + 2 * i] + 256 * bytes[17 + 2 * i], rows = bytes[48 + i];
    if (i < 8) {
      amx::require(width <= 64 && width % 4 == 0 && rows <= 16, "shape of a tile");
      amx::state.bytes[i] = width;
      amx::state.rows[i] = rows;
    } else {
      amx::require(width == 0 && rows == 0, "eight tiles");
    }
  }
  for (auto& tile : amx::state.tile)
    for (auto& row : tile) row.fill(0);
  amx::state.configured = true;
}

inline void _tile_release() {
  amx::state.configured = false;
}

inline void _tile_zero(int tile) {
  amx::use(tile);
  for (auto& row : amx::state.tile[tile]) row.fill(0);
}

inline void _tile_loadd(int tile, const void* memory, int64_t stride) {
  amx::use(tile);
  for (int r = 0; r < amx::state.rows[tile]; ++r)
    std::memcpy(amx::state.tile[tile][r].data(), static_cast<const char*>(memory) + r * stride, amx::state.bytes[tile]);
}

inline void _tile_stored(int tile, void* memory, int64_t stride) {
  amx::use(tile);
  for (int r = 0; r < amx::state.rows[tile]; ++r)
    std::memcpy(static_cast<char*>(memory) + r * stride, amx::state.tile[tile][r].data(), amx::state.bytes[tile]);
}

/// sums[m][n] += a[m][2k] b[k][2n] + a[m][2k + 1] b[k][2n + 1], bfloat16 in, float32 out.
inline void _tile_dpbf16ps(int sums, int a, int b) {
  for (const int tile : {sums, a, b}) amx::use(tile);
  const auto& s = amx::state;
  amx::require(s.rows[sums] == s.rows[a] && s.bytes[sums] == s.bytes[b] && s.bytes[a] == 4 * s.rows[b],
               "shapes of a product");
  for (int m = 0; m < s.rows[sums]; ++m)
    for (int k = 0; k < s.rows[b]; ++k)
      for (int n = 0; n < s.bytes[b] / 4; ++n) {
        const uint32_t pair = s.tile[a][m][k], other = s.tile[b][k][n];
        uint32_t& place = amx::state.tile[sums][m][n];
        float sum = amx::number(place);
        sum += amx::number(pair << 16) * amx::number(other << 16);
        sum += amx::number(pair & 0xffff0000u) * amx::number(other & 0xffff0000u);
        std::memcpy(&place, &sum, sizeof(sum));
      }
}
