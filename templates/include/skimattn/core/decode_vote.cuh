// What a row group of a decode CTA decides about its tiles, and whether V's loader waits for it.
#pragma once
#include <skimattn/core/decode_work.cuh>

namespace skimattn {

// What the group decides about a tile. All warps arrive on `voted`, then V's loader on `counted`; `kept` is the number
// of the last vote, counted over all tiles, in which a warp kept its tile.
struct DecodeVote {
  uint64_t voted, counted;
  uint32_t kept, unused;
};

// Whether V's loader takes a tile to be kept and loads before it knows: after so many kept ones in a row, and at first.
// Waiting for every vote would leave memory idle where nothing is skipped; guessing too early loads what is skipped.
// Note: consumer and loader both count, and must come to the same answer.
class KeptRun {
 public:
  static constexpr int kEnough = 4;
  SKIM_DEVICE bool expects_kept() const { return length_ >= kEnough; }
  SKIM_DEVICE void add(bool kept) { length_ = kept ? imin(length_ + 1, kEnough) : 0; }

 private:
  int length_ = kEnough;
};

}  // namespace skimattn
