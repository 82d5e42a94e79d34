// V of 8 bits as SM90 multiplies it: transposed, in the workspace, where a kernel of its own has written it
// (sm90/transpose). wgmma reads 8-bit operands along K alone, which for P.V are keys.
//
// [place][kv head][row][tile][128 bytes]: the 128 keys of a tile of one column, or, where a tile has 64, those of two
// columns that are half of all columns apart. So a tile is one copy, and fills the rows of shared memory.
#pragma once
#include <skimattn/core/key_tiles.cuh>

namespace skimattn {

// Keys of a group of 16 lie in the order in which a thread has the scores of a row: 0 1 8 9, 2 3 10 11, 4 5 12 13,
// 6 7 14 15. So the accumulator of Q.K^T is the A operand of P.V as it is: thread c of a quad holds columns 2c, 2c + 1,
// 2c + 8, 2c + 9 of 16, and is asked for k = 4c to 4c + 3 of the first half of a step, and likewise of the second.
constexpr int kTransposedGroup = 16;
// The key of the group that lies `position` bytes on.
SKIM_DEVICE constexpr int key_of_position(int position) {
  return position / 4 * 2 + position % 2 + position % 4 / 2 * 8;
}

template <class Tr>
struct Transposed {
  static_assert(kPanelRowBytes % Tr::kTileN == 0);
  static constexpr int kParts = kPanelRowBytes / Tr::kTileN;  // of the columns, side by side in a row
  static constexpr int kColumns = Tr::kHeadDimV / kParts;     // of a part: rows
  static constexpr int kTileBytes = kColumns * kPanelRowBytes;
};

// Where the tiles of a request are: its first one, in place `outer` of the workspace.
struct TransposedPlace {
  int tile0, outer;
};
// Requests of this launch's round have places of their own, as long as the longest. Ragged ones follow each other in
// whole tiles instead: one that starts at key o starts at tile o / kTileN + batch, which leaves enough for the one
// before it, and takes no counting.
template <int kTileN>
SKIM_DEVICE TransposedPlace transposed_place(const Params& p, int batch, int offset) {
  if (p.cu_seqlens_k == nullptr) return {0, batch - p.first_request};
  return {offset / kTileN + batch, 0};
}

// One copy: all columns of a tile of keys.
template <class Tr>
SKIM_DEVICE void load_transposed(uint8_t* to, uint64_t* full, const Keys& keys, int tile, const Params& p) {
  const TransposedPlace place = transposed_place<Tr::kTileN>(p, keys.batch, keys.offset);
  ptx::mbarrier_arrive_expect_tx(full, Transposed<Tr>::kTileBytes);
  ptx::tma_load(to, &p.tma_vt, full, ptx::createpolicy_evict_last(), (place.tile0 + tile) * kPanelRowBytes, 0,
                keys.head, place.outer);
}

}  // namespace skimattn
