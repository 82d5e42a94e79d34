// The votes of a decode CTA's consumer warpgroup: a tile is dropped when all valid rows of the group agree.
#pragma once
#include <skimattn/core/fragment.cuh>
#include <skimattn/sm90/decode/operands.cuh>

namespace skimattn::sm90 {

// Whether this warp keeps a tile, by the maxima of what its threads have of it: see row_can_skip.
template <class Place, int kRows>
SKIM_DEVICE bool warp_keeps(const float (&thread_max)[kRows], const float (&running_max)[kRows], const Place& at,
                            float scale_log2, const float (&limit)[kRows]) {
  bool agree = true;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    agree &= !at.valid(r) | row_can_skip(thread_max[r], running_max[r], scale_log2, limit[r]);
  }
  return ptx::warp_any(!agree);
}

template <class Tr>
class DecodeVotes {
 public:
  using Storage = DecodeStorage<Tr>;

  SKIM_DEVICE void cast(bool keeps, Storage& smem, int thread) {
    if (thread % kWarpThreads == 0) {
      // V's loader has read the vote before in this place.
      ptx::mbarrier_wait_parity(&vote(smem).counted, phase() ^ 1);
      if (keeps) ptx::st_shared(&vote(smem).kept, votes_ + 1);
      ptx::mbarrier_arrive(&vote(smem).voted);
    }
  }
  // Whether the tile is kept. A warp that keeps it knows, and does not wait for the others.
  SKIM_DEVICE bool resolve(bool keeps, OperandRings<Tr>& rings, Storage& smem) {
    bool kept = keeps;
    if (!keeps) {
      ptx::mbarrier_wait_parity(&vote(smem).voted, phase());
      kept = ptx::ld_shared(&vote(smem).kept) == votes_ + 1;
    }
    ++votes_;
    const bool early = run_.expects_kept();
    run_.add(kept);
    if (early && !kept) rings.drop_values();
    return kept;
  }

 private:
  // Note: counted rather than kept, which would take a register for each.
  SKIM_DEVICE DecodeVote& vote(Storage& smem) const { return smem.votes[votes_ % Storage::kVoteSlots]; }
  SKIM_DEVICE uint32_t phase() const { return votes_ / Storage::kVoteSlots & 1; }

  uint32_t votes_ = 0;
  KeptRun run_;
};

}  // namespace skimattn::sm90
