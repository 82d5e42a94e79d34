// What a decode CTA works on: one part of the keys of one row group of a (request, kv head).
#pragma once
#include <skimattn/core/pipeline.cuh>
#include <skimattn/core/skip.cuh>
#include <skimattn/core/split.cuh>

namespace skimattn {

// `base.head` is the kv head, `base.row0` the group's first packed row. What follows from these is computed once, by
// the warp that draws the work, since integers cost the others more than they look.
struct DecodeItem {
  WorkItem base;
  int part, only;          // which part of the request's, and whether it is the only one
  int leaf_shift, lo, hi;  // log2 of the tiles of a leaf, and the part's leaves
  TileRange range;         // the tiles that the group's rows may see
  Span start;              // the tiles that leaves' maxima start from, visited from the last one down
  int first_key;           // that some row of the request may see
  SKIM_DEVICE int packed_rows(const Params& p) const { return base.len_q * (p.qheads_per_kv); }
  // The group's tiles [lo, hi) of one leaf.
  SKIM_DEVICE Span tiles_of(int leaf) const {
    return {imax(leaf << leaf_shift, range.first), imin((leaf + 1) << leaf_shift, range.last)};
  }
  // Copies of key tiles that the part needs.
  SKIM_DEVICE int key_tiles() const {
    const int tiles = imin(hi << leaf_shift, range.last) - imax(lo << leaf_shift, range.first);
    return start.hi - start.lo + imax(tiles, 0);
  }
};
constexpr int kDecodeWords = sizeof(DecodeItem) / 4;
constexpr int kFirstKeyWord = SKIM_OFFSETOF(DecodeItem, first_key) / 4;

// Query rows [lo, hi) that have a packed row in the item's group.
template <class Tr>
SKIM_DEVICE Span group_rows(const DecodeItem& item, const Params& p) {
  const int qheads_per_kv = p.qheads_per_kv;
  const int end = imin(item.base.row0 + Tr::kGroupRows, item.packed_rows(p));
  return {item.base.row0 / qheads_per_kv, ceil_div(end, qheads_per_kv)};
}

// Tile 0, where rows see the first keys and large scores gather there; with windows, slopes or sinks of their own the
// last visible tile, and the one before it if some row that has keys sees none there. Geometry alone, whatever a custom
// mask says. bench/NOTES.md has the measurement.
template <class Tr>
SKIM_DEVICE Span start_tiles(const DecodeItem& item, const Params& p) {
  const TileRange& range = item.range;
  if (range.last <= range.first) return {0, 0};
  constexpr bool kSeesFirstKeys = !kHidesFirstKeys<Tr::kMask> || Tr::kMask == Mask::kCustom;
  if (kSeesFirstKeys && !Tr::kAlibi && p.sinks == nullptr) return {range.first, range.first + 1};
  const Span rows = group_rows<Tr>(item, p);
  const int offset = item.base.len_k - item.base.len_q, border = (range.last - 1) * Tr::kTileN;
  for (int row = rows.lo; row < rows.hi; ++row) {
    const Span seen = visible_keys<Tr::kMask>(row + offset, item.base.len_k, p);
    if (seen.hi <= seen.lo) continue;
    // Note: later rows see at least as far, so the first row that has keys answers for all of them.
    const bool enough = seen.hi > border || range.last - 1 == range.first;
    return {range.last - (enough ? 1 : 2), range.last};
  }
  return {0, 0};
}

// By a whole warp: whether the thresholds of all heads of the item's group are above 0.
template <class Tr>
SKIM_DEVICE bool thresholds_are_above_zero(const DecodeItem& item, int lane, const Params& p) {
  const int qheads_per_kv = p.qheads_per_kv, rows = item.packed_rows(p);
  bool above = true;
  for (int i = lane; i < Tr::kGroupRows && item.base.row0 + i < rows; i += kWarpThreads) {
    const int head = item.base.head * qheads_per_kv + (item.base.row0 + i) % qheads_per_kv;
    above &= log2_threshold(p, item.base.batch, head) != -kInf;
  }
  return ptx::ballot(!above) == 0;
}

// Fills in what follows from `base` and `part`. By a whole warp.
template <class Tr>
SKIM_DEVICE void complete(DecodeItem& item, int lane, const Params& p) {
  const int len_q = item.base.len_q, len_k = item.base.len_k;
  const Leaves leaves = leaves_of<Tr>(len_q, len_k, p);
  const Span own = leaves_of_part(leaves, item.part, p), rows = group_rows<Tr>(item, p);
  item.only = parts_of(leaves, p) == 1 ? 1 : 0;
  item.leaf_shift = leaves.shift;
  item.lo = own.lo;
  item.hi = own.hi;
  item.range = tile_range<Tr::kMask, Tr::kTileN>(rows.lo, rows.hi, len_q, len_k, p);
  item.first_key = visible_keys<Tr::kMask>(len_k - len_q, len_k, p).lo;
  item.start = {0, 0};
  if constexpr (Tr::kSkip != Skip::kDense) {
    if (thresholds_are_above_zero<Tr>(item, lane, p)) item.start = start_tiles<Tr>(item, p);
  }
}

SKIM_DEVICE DecodeItem item_of_words(const int (&w)[kDecodeWords]) {
  return {{w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]},
          w[8],
          w[9],
          w[10],
          w[11],
          w[12],
          {w[13], w[14], w[15], w[16]},
          {w[17], w[18]},
          w[19]};
}
template <class Storage>
SKIM_DEVICE DecodeItem read_decode_item(const Storage& smem, int slot) {
  int words[kDecodeWords];
#pragma unroll
  for (int i = 0; i < kDecodeWords; ++i) words[i] = static_cast<int>(ptx::ld_shared(&smem.work[slot][i]));
  return item_of_words(words);
}
template <class Storage>
SKIM_DEVICE void write_decode_item(Storage& smem, int slot, const DecodeItem& item) {
  const WorkItem& base = item.base;
  const int words[kDecodeWords] = {base.valid,
                                   base.batch,
                                   base.head,
                                   base.row0,
                                   base.len_q,
                                   base.len_k,
                                   base.q_offset,
                                   base.k_offset,
                                   item.part,
                                   item.only,
                                   item.leaf_shift,
                                   item.lo,
                                   item.hi,
                                   item.range.first,
                                   item.range.last,
                                   item.range.clean_first,
                                   item.range.clean_last,
                                   item.start.lo,
                                   item.start.hi,
                                   item.first_key};
#pragma unroll
  for (int i = 0; i < kDecodeWords; ++i) ptx::st_shared(&smem.work[slot][i], words[i]);
}

// What the scheduler counts: (group, part) of each request of this launch's round that is decode's.
template <class Tr>
struct DecodeUnits {
  SKIM_DEVICE static int heads(const Params& p) { return p.heads_kv; }
  SKIM_DEVICE static int heads_step(const Params& p) { return p.heads_kv; }
  SKIM_DEVICE static int of_request(const Params& p, int request) {
    const int rows = request_rows(p, request), keys = request_keys(p, request);
    if (rows == 0 || !decodes(p, rows, keys)) return 0;
    return ceil_div(rows * (p.qheads_per_kv), Tr::kGroupRows) * parts_of(leaves_of<Tr>(rows, keys, p), p);
  }
};

template <class Tr>
class DecodeScheduler {
 public:
  SKIM_DEVICE explicit DecodeScheduler(const Params& p) {
    levels_.start(p, p.first_request, imin(p.first_request + p.round_requests, p.batch));
  }
  // By a whole warp. TileCounter must rise. Not valid past the end.
  SKIM_DEVICE DecodeItem decode(const Params& p, int ticket, int lane) {
    const auto found = levels_.locate(p, ticket);
    if (found.request < 0) return {};
    DecodeItem item = {};
    item.base = make_item(p, found.request, found.head, 0);
    // Note: groups of one part lie next to each other in the order, since they read the same keys.
    const int groups = ceil_div(item.packed_rows(p), Tr::kGroupRows);
    item.base.row0 = found.level % groups * Tr::kGroupRows;
    item.part = found.level / groups;
    complete<Tr>(item, lane, p);
    return item;
  }
  SKIM_DEVICE int items() const { return levels_.items(); }

 private:
  LevelScheduler<DecodeUnits<Tr>> levels_;
};

}  // namespace skimattn
