// Which keys a query row sees. Every mask but `custom` is one interval of keys per row, and both its ends never
// fall from one row to the next; tile_range.cuh relies on that.
#pragma once
#include <skimattn/core/platform.cuh>
#include <skimattn/features.cuh>
#include <skimattn/params.cuh>

namespace skimattn {

// Keys [lo, hi) of a request; empty where hi <= lo.
struct Span {
  int lo, hi;
};

// Whether some row may not see the first keys, so that the tiles at that end need masking too.
template <Mask kMask>
inline constexpr bool kHidesFirstKeys = kMask != Mask::kFull && kMask != Mask::kCausal;

// The key that column 0 of a custom mask stands for; rows see all keys before it. Below 0 where a request has fewer
// keys than the mask has columns, the first of which then stand for none.
SKIM_DEVICE int first_masked_key(int len_k, const Params& p) { return p.custom_keys > 0 ? len_k - p.custom_keys : 0; }

// The keys that a row sees whose own position on the key axis is `diagonal` (row + len_k - len_q: bottom-right
// aligned, negative where the row lies before the first key).
template <Mask kMask>
SKIM_DEVICE Span visible_keys(int diagonal, int len_k, const Params& p) {
  if constexpr (kMask == Mask::kCausal) {
    return {0, imin(diagonal + 1, len_k)};
  } else if constexpr (kMask == Mask::kWindow) {
    // Note: the edges are compared before they are added, since a window may be close to INT_MAX.
    const int lo = p.window_left < 0 || p.window_left > diagonal ? 0 : diagonal - p.window_left;
    const int hi = p.window_right < 0 || p.window_right > len_k - diagonal ? len_k : diagonal + p.window_right + 1;
    return {lo, imin(hi, len_k)};
  } else if constexpr (kMask == Mask::kChunked) {
    // Causal is a window too here: neither of its sides is unlimited, nor so wide that a sum leaves 32 bits.
    if (diagonal < 0) return {0, 0};
    const int start = diagonal / p.chunk_size * p.chunk_size;
    const int hi = imin(start + p.chunk_size, diagonal + p.window_right + 1);
    return {imax(start, diagonal - p.window_left), imin(hi, len_k)};
  } else {
    return {0, len_k};
  }
}

}  // namespace skimattn
