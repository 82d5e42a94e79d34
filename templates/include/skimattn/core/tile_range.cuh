// From rows to key tiles: which tiles a range of rows visits, and which of them need no masking.
#pragma once
#include <skimattn/core/mask.cuh>

namespace skimattn {

// Tiles [first, last) contain every key that some row sees; those in [clean_first, clean_last) are seen whole by
// every row.
struct TileRange {
  int first, last, clean_first, clean_last;
};

// For the rows [row0, row1) of a request; row1 <= row0 gives an empty range.
template <Mask kMask, int kTileN>
SKIM_DEVICE TileRange tile_range(int row0, int row1, int len_q, int len_k, const Params& p) {
  if (row1 <= row0) return {0, 0, 0, 0};
  const Span top = visible_keys<kMask>(row0 + len_k - len_q, len_k, p);
  const Span bottom = visible_keys<kMask>(row1 - 1 + len_k - len_q, len_k, p);
  if (bottom.hi <= top.lo) return {0, 0, 0, 0};
  TileRange range = {top.lo / kTileN, ceil_div(bottom.hi, kTileN), 0, 0};
  if constexpr (kMask == Mask::kCustom) {
    range.clean_last = imax(first_masked_key(len_k, p), 0) / kTileN;
    return range;
  }
  const int clean_first = imax(ceil_div(bottom.lo, kTileN), range.first);
  const int clean_last = imin(imax(top.hi, 0) / kTileN, range.last);
  return {range.first, range.last, clean_first, imax(clean_last, clean_first)};
}

// The i-th tile to visit: from the last one down, but tile `first` at once where kSinkFirst.
template <bool kSinkFirst>
SKIM_DEVICE int visited_tile(int first, int last, int i) {
  if constexpr (!kSinkFirst) return last - 1 - i;
  return i == 0 ? first : last - i;
}

}  // namespace skimattn
