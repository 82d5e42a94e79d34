// What the roles of a CTA have in common: their places in rings of buffers, the work item they read, the tiles its rows
// visit.
#pragma once
#include <skimattn/core/scheduler.cuh>
#include <skimattn/core/tile_range.cuh>

namespace skimattn {

constexpr int kWorkSlots = 2;
constexpr int kGroupWarps = kGroupThreads / kWarpThreads;

// A position in a ring of kSlots buffers; `phase` is the parity that a reader waits for.
template <int kSlots>
struct PipelineState {
  int slot = 0;
  uint32_t phase = 0;
  SKIM_DEVICE void advance() {
    if (++slot == kSlots) {
      slot = 0;
      phase ^= 1;
    }
  }
  SKIM_DEVICE PipelineState previous() const {
    return slot == 0 ? PipelineState{kSlots - 1, phase ^ 1} : PipelineState{slot - 1, phase};
  }
};

// Skip kernels: what a row group decides about a tile. All its warps arrive on `voted`; `kept` is the number of the
// last vote, counted over all tiles, in which one of them kept its tile. Side by side, so that one address serves both.
struct Vote {
  uint64_t voted;
  uint32_t kept, unused;
};

template <class Storage>
SKIM_DEVICE WorkItem read_work(const Storage& smem, int slot) {
  int words[kWorkWords];
#pragma unroll
  for (int i = 0; i < kWorkWords; ++i) words[i] = static_cast<int>(ptx::ld_shared(&smem.work[slot][i]));
  return {words[0], words[1], words[2], words[3], words[4], words[5], words[6], words[7]};
}

// The tiles that `rows` rows of a request visit, from row0 on; what lies past its last row visits none.
template <class Tr>
SKIM_DEVICE TileRange visited_range(const WorkItem& item, int row0, int rows, const Params& p) {
  return tile_range<Tr::kMask, Tr::kTileN>(row0, imin(row0 + rows, item.len_q), item.len_q, item.len_k, p);
}
// The keys of tile n that some row of the request may see, from the tile's first on. V's others are zeroed before a
// product reads them: times a probability of 0, a NaN that a cache, a neighbour or a page behind the window left there
// would still be NaN.
// Note: of the request, not of the CTA: what other rows see are keys of its own, and to zero them too made windows 5 %
// and chunks 12 % slower.
template <class Tr>
SKIM_DEVICE Span seen_in_tile(int len_q, int len_k, int n, const Params& p) {
  return {visible_keys<Tr::kMask>(len_k - len_q, len_k, p).lo - n * Tr::kTileN, len_k - n * Tr::kTileN};
}
// The tiles that all the CTA's rows visit: what is loaded, and what every group walks.
template <class Tr>
SKIM_DEVICE TileRange cta_range(const WorkItem& item, const Params& p) {
  return visited_range<Tr>(item, item.row0, Tr::kTileM, p);
}

}  // namespace skimattn
