// What a consumer of a decode CTA knows of its item, whichever way it multiplies.
#pragma once
#include <skimattn/core/descale.cuh>
#include <skimattn/sm90/decode/storage.cuh>

namespace skimattn::sm90 {

// Shuffled, so that the compiler knows it to be the same in the whole warp: branches depend on it.
SKIM_DEVICE int uniform(int value) { return ptx::shfl(value, 0); }
SKIM_DEVICE Span uniform(const Span& span) { return {uniform(span.lo), uniform(span.hi)}; }

// Keys of tile n that some row of the request sees, from the tile's first on: see seen_in_tile.
template <class Tr>
SKIM_DEVICE Span seen_of_tile(const DecodeStorage<Tr>& smem, int work_slot, int n, int len_k) {
  int first_key = 0;
  if constexpr (kHidesFirstKeys<Tr::kMask> && Tr::kMask != Mask::kCustom) {
    first_key = uniform(static_cast<int>(ptx::ld_shared(&smem.work[work_slot][kFirstKeyWord])));
  }
  return {first_key - n * Tr::kTileN, len_k - n * Tr::kTileN};
}

// What one unit of a product counts: inside the softcap where there is one.
template <class Tr>
class ScoreUnit {
 public:
  static constexpr bool kConverts = DecodePanels<Tr>::kConvertsKv;

  SKIM_DEVICE void load(const Params& p, int batch, int kv_head) {
    if constexpr (kConverts) unit_ = qk_descale(p, batch, kv_head);
  }
  SKIM_DEVICE float scale_log2(const Params& p) const {
    return kConverts && !Tr::kSoftcap ? p.scale_log2 * unit_ : p.scale_log2;
  }
  SKIM_DEVICE float score_scale(const Params& p) const { return kConverts ? p.score_scale * unit_ : p.score_scale; }
  // Slopes in units of the product.
  template <class Place>
  SKIM_DEVICE void scale_slopes(Place& at) const {
    if constexpr (Tr::kAlibi && kConverts && !Tr::kSoftcap) {
#pragma unroll
      for (int r = 0; r < Place::Layout::kRows; ++r) at.alibi[r] /= unit_;
    }
  }

 private:
  float unit_ = 1.0f;
};

// The thresholds of a thread's rows.
template <class Tr, class Place, int kRows>
SKIM_DEVICE void load_limits(float (&limit)[kRows], const Place& at, const Params& p) {
  if constexpr (Tr::kSkip != Skip::kDense) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) limit[r] = log2_threshold(p, at.batch, at.head[r]);
  }
}

}  // namespace skimattn::sm90
