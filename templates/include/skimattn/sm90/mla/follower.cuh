// The warpgroup of an MLA decode CTA that follows: it multiplies the leader's probabilities by the right half of V's
// columns.
#pragma once
#include <skimattn/sm90/mla/group.cuh>

namespace skimattn::sm90 {

template <class Tr>
class MlaFollower : public MlaGroup<Tr, false> {
 public:
  using Base = MlaGroup<Tr, false>;
  using Storage = typename Base::Storage;
  static constexpr bool kSkips = Base::kSkips;

  SKIM_DEVICE MlaFollower(const Params& p, Storage& smem) : Base(p, smem) {}

  SKIM_DEVICE void run() {
    while (this->load_work()) {
      pass_start_tiles(this->read_item().start);
      for (int leaf = this->lo_; leaf < this->hi_; ++leaf) {
        compute_leaf(leaf);
        finish_leaf(leaf);
      }
      this->finish_work();
    }
  }

 private:
  using Base::kv_;
  using Base::o_;
  using Base::p_;
  using Base::smem_;
  using Base::thread_;
  using Base::told_;
  using Base::vote_;
  using Base::votes_;

  SKIM_DEVICE void pass_start_tiles(const Span& tiles) {
    if constexpr (kSkips) {
      const int count = Base::uniform(tiles.hi - tiles.lo);
      for (int i = 0; i < count; ++i) {
        this->wait_for(Storage::kRight);  // or this would count for the tile that was in the slot before
        hand_back();
      }
    }
  }
  SKIM_DEVICE void hand_back() {
    this->release(Storage::kRight);
    kv_.advance();
  }

  SKIM_DEVICE void compute_leaf(int leaf) {
    const Span tiles = Base::tiles_of(this->read_item(), leaf);
    this->clear_output();
    for (int n = tiles.hi - 1; n >= tiles.lo; --n) {
      if (!kSkips || hear_vote()) multiply_values();
      hand_back();
    }
  }

  SKIM_DEVICE bool hear_vote() {
    DecodeVote& vote = smem_.votes[vote_.slot];
    ++votes_;
    ptx::mbarrier_wait_parity(&vote.voted, vote_.phase);
    const bool kept = ptx::warp_any(ptx::ld_shared(&vote.kept) == votes_);  // uniform for the compiler too
    this->signal(&vote.counted);
    vote_.advance();
    return kept;
  }

  // O = O * what it counts from now on + P.V of the right half.
  SKIM_DEVICE void multiply_values() {
    ptx::mbarrier_wait_parity(&smem_.told_full, told_.phase);
    float scale[kThreadRows];
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      scale[r] = ptx::ld_shared_float(smem_.told[this->first_row() + Layout::kRowStep * r]);
    }
#pragma unroll
    for (int i = 0; i < Base::kOut; ++i) o_[i] *= scale[Layout::row(i)];
    this->wait_for(Storage::kRight);
    ptx::wgmma_fence();
    const uint64_t p = k_major_chunks(smem_.p, Tr::kGroupRows), v = this->values();
#pragma unroll
    for (int i = 0; i < Base::kStepsV; ++i) {
      Base::Wgmma::ss_mn_major(o_, advance(p, i * 2 * sizeof smem_.p[0]), advance(v, i * 16 * kPanelRowBytes));
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    this->signal(&smem_.told_empty);
    told_.advance();
  }

  SKIM_DEVICE void finish_leaf(int leaf) {
    RowMerge merge[kThreadRows];
    const int row = ptx::late(this->first_row());
    ptx::mbarrier_wait_parity(&smem_.told_full, told_.phase);
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      const float* from = smem_.told[row + Layout::kRowStep * r];
      merge[r] = {ptx::ld_shared_float(from), ptx::ld_shared_float(from + 1), ptx::ld_shared_float(from + 2)};
    }
    this->signal(&smem_.told_empty);
    told_.advance();
    const DecodeItem item = this->read_item();
    this->merge_leaf(merge, leaf, this->place_of(item), item);
  }
};

}  // namespace skimattn::sm90
