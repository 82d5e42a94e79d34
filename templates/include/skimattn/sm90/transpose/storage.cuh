// What lives in shared memory while a tile of V is transposed.
#pragma once
#include <skimattn/core/transposed.cuh>

namespace skimattn::sm90 {

template <class Tr>
struct TransposeStorage {
  static constexpr int kPanels = ceil_div(Tr::kHeadDimV, kPanelRowBytes);
  static constexpr int kPanelBytes = Tr::kTileN * kPanelRowBytes;
  alignas(1024) uint8_t keys[kPanels * kPanelBytes];          // [panel][key][column]
  alignas(1024) uint8_t columns[Transposed<Tr>::kTileBytes];  // as in the workspace
  alignas(1024) uint64_t full;                                // the tile has landed in `keys`
};

}  // namespace skimattn::sm90
