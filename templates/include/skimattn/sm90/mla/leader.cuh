// The warpgroup of an MLA decode CTA that leads: it computes the scores of every tile, decides whether the tile is
// kept, makes its probabilities, tells the follower, and multiplies them by the left half of V's columns.
#pragma once
#include <skimattn/sm90/mla/group.cuh>

namespace skimattn::sm90 {

template <class Tr>
class MlaLeader : public MlaGroup<Tr, true> {
 public:
  using Base = MlaGroup<Tr, true>;
  using Storage = typename Base::Storage;
  using Place = typename Base::Place;
  static constexpr bool kSkips = Base::kSkips;
  static constexpr int kScores = Tr::kTileN / 2;  // floats a thread holds of a 64-row tile
  static constexpr int kUnseenBarrier = 1;        // 0 belongs to cta_sync

  SKIM_DEVICE MlaLeader(const Params& p, Storage& smem) : Base(p, smem) {}

  SKIM_DEVICE void run() {
    while (this->load_work()) {
      start_work(this->read_item());
      for (int leaf = lo_; leaf < hi_; ++leaf) {
        compute_leaf(leaf);
        finish_leaf(leaf);
      }
      this->signal(&smem_.q_empty);
      this->finish_work();
    }
  }

 private:
  using Base::hi_;
  using Base::kv_;
  using Base::lo_;
  using Base::o_;
  using Base::p_;
  using Base::smem_;
  using Base::thread_;
  using Base::told_;
  using Base::vote_;
  using Base::votes_;

  SKIM_DEVICE void start_work(const DecodeItem& item) {
    if constexpr (kSkips) {
      const Place at = this->place_of(item);
#pragma unroll
      for (int r = 0; r < kThreadRows; ++r) {
        limit_[r] = log2_threshold(p_, at.batch, at.head[r]);
        valid_[r] = at.valid(r);
      }
    }
    static_assert(kWorkSlots == 2);  // so the item's place tells the phase of Q's only slot too
    ptx::mbarrier_wait_parity(&smem_.q_full, this->work_.slot);
    find_start_maxima({Base::uniform(item.start.lo), Base::uniform(item.start.hi)});
  }

  // What every leaf's maxima start from.
  SKIM_DEVICE void find_start_maxima(const Span& tiles) {
    if constexpr (kSkips) {
      float start_max[kThreadRows];
#pragma unroll
      for (int r = 0; r < kThreadRows; ++r) start_max[r] = -kInf;
      for (int n = tiles.hi - 1; n >= tiles.lo; --n) {
        float s[kScores], thread_max[kThreadRows];
        compute_scores<true>(s, n);
        thread_maximum(s, thread_max);
#pragma unroll
        for (int r = 0; r < kThreadRows; ++r) start_max[r] = ptx::max_nan(start_max[r], quad_max(thread_max[r]));
        hand_back();
      }
      if (thread_ % 4 == 0) {
#pragma unroll
        for (int r = 0; r < kThreadRows; ++r) {
          ptx::st_shared_float(&smem_.rows[this->first_row() + Layout::kRowStep * r][2], start_max[r]);
        }
      }
      ptx::warp_sync();
    }
  }

  SKIM_DEVICE void compute_leaf(int leaf) {
    const DecodeItem item = this->read_item();
    const Span tiles = Base::tiles_of(item, leaf);
    const int clean_first = Base::uniform(item.range.clean_first), clean_last = Base::uniform(item.range.clean_last);
    const int row = ptx::late(this->first_row());
    this->clear_output();
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      rows_.max[r] = kSkips ? ptx::ld_shared_float(&smem_.rows[row + Layout::kRowStep * r][2]) : -kInf;
      rows_.sum[r] = 0.0f;
    }
    for (int n = tiles.hi - 1; n >= tiles.lo; --n) {
      if (n >= clean_first && n < clean_last) {
        step<false>(n);
      } else {
        step<true>(n);
      }
    }
  }

  // Raw scores of tile n, masked; the slot keeps its left half.
  template <bool kMasked>
  SKIM_DEVICE void compute_scores(float (&s)[kScores], int n) {
    const uint64_t q = k_major(smem_.q()), k = advance(k_major(smem_.kv[0]), kv_.slot * Storage::kKvBytes);
#pragma unroll
    for (int part = 0; part < Storage::kParts; ++part) {
      this->wait_for(part);
      ptx::wgmma_fence();  // one after each wait, since the compiler would not know where to put those it wants
#pragma unroll
      for (int i = 0; i < 4 * Storage::panels(part); ++i) {  // four k16 steps to a 128-byte row
        const int panel = Storage::first_panel(part) + i / 4, inside = i % 4 * 32;
        ptx::Wgmma<typename Tr::Element, Tr::kTileN>::ss(s, advance(q, panel * Storage::kQPanelBytes + inside),
                                                         advance(k, panel * Storage::kKvPanelBytes + inside),
                                                         part > 0 || i > 0);
      }
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    this->release(Storage::kRest);
    this->release(Storage::kRight);
    if constexpr (kMasked) {
      const Place at = this->place_of(this->read_item());
      apply_score_mod<Tr>(s, n * Tr::kTileN, at, p_.score_scale);
      mask_scores<Tr>(s, n * Tr::kTileN, at, p_);
    } else {
      apply_score_mod<Tr>(s, n * Tr::kTileN, Place{}, p_.score_scale);  // without alibi it does not ask where
    }
  }
  SKIM_DEVICE void hand_back() {
    this->release(Storage::kLeft);
    kv_.advance();
  }

  template <bool kMasked>
  SKIM_DEVICE void step(int n) {
    float s[kScores], thread_max[kThreadRows];
    compute_scores<kMasked>(s, n);
    thread_maximum(s, thread_max);
    if (!kSkips || vote(thread_max)) {
      uint32_t probabilities[Base::kStepsV][4];
      const RowMaxUpdate update = update_row_max(thread_max, rows_, p_.scale_log2);
      exp_and_pack<typename Tr::Element>(s, Ahead<0>{}, update, p_.scale_log2, rows_, probabilities, o_);
      if constexpr (kMasked) clear_unseen(n);
      tell_tile(probabilities, update);
      multiply_values(probabilities);
    }
    hand_back();
  }

  // O += P.V of the left half.
  SKIM_DEVICE void multiply_values(const uint32_t (&probabilities)[Base::kStepsV][4]) {
    ptx::wgmma_fence();
    const uint64_t v = this->values();
#pragma unroll
    for (int i = 0; i < Base::kStepsV; ++i) Base::Wgmma::rs(o_, probabilities[i], advance(v, i * 16 * kPanelRowBytes));
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
  }

  // The follower's P, and what its output counts from now on.
  SKIM_DEVICE void tell_tile(const uint32_t (&probabilities)[Base::kStepsV][4], const RowMaxUpdate& update) {
    const int row = ptx::late(this->first_row()), lane = thread_ % kWarpThreads;
    ptx::mbarrier_wait_parity(&smem_.told_empty, told_.phase ^ 1);
#pragma unroll
    for (int i = 0; i < Base::kStepsV; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint8_t* to = smem_.p[2 * i + half][row] + lane % 4 * 4;
        ptx::st_shared(to, probabilities[i][2 * half]);
        ptx::st_shared(to + Layout::kRowStep * kChunkBytes, probabilities[i][2 * half + 1]);
      }
    }
    if (lane % 4 == 0) {
#pragma unroll
      for (int r = 0; r < kThreadRows; ++r) {
        ptx::st_shared_float(&smem_.told[row + Layout::kRowStep * r][0], update.acc_scale[r]);
      }
    }
    ptx::fence_proxy_async();
    this->signal(&smem_.told_full);
    told_.advance();
  }

  SKIM_DEVICE void finish_leaf(int leaf) {
    const DecodeItem item = this->read_item();
    const Place at = this->place_of(item);
    const int row = ptx::late(this->first_row());
    RowMerge merge[kThreadRows];
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      const RowScale before = leaf == lo_ ? RowScale{-kInf, 0.0f} : merged(row, r);
      const RowScale now = {rows_.max[r] == -kInf ? -kInf : rows_.max[r] * p_.scale_log2, quad_sum(rows_.sum[r])};
      merge[r] = merge_row(before, now, row, r, at);
    }
    tell_leaf(merge, row);
    if (leaf == hi_ - 1) store_scales(row, at, item);
    this->merge_leaf(merge, leaf, at, item);
  }

  // Scales of the leaves so far wait in shared memory, as do the maxima that leaves start from, to save registers. All
  // lanes of a row read, and one of them writes, before the warp tells the follower.
  SKIM_DEVICE RowScale merged(int row, int r) const {
    const float* from = smem_.rows[row + Layout::kRowStep * r];
    return {ptx::ld_shared_float(from), ptx::ld_shared_float(from + 1)};
  }
  SKIM_DEVICE RowMerge merge_row(const RowScale& before, const RowScale& now, int row, int r, const Place& at) const {
    const Merge merge = merge_of(before, now);
    ptx::warp_sync();  // all lanes have read
    if (at.column == 0) {
      float* to = smem_.rows[row + Layout::kRowStep * r];
      ptx::st_shared_float(to, merge.merged.max);
      ptx::st_shared_float(to + 1, merge.merged.sum);
    }
    return {merge.first, merge.second, inverse_of(merge.merged.sum, merge.merged.max, 1.0f, at.head[r], p_)};
  }
  SKIM_DEVICE void tell_leaf(const RowMerge (&merge)[kThreadRows], int row) {
    ptx::mbarrier_wait_parity(&smem_.told_empty, told_.phase ^ 1);
    if (thread_ % 4 == 0) {
#pragma unroll
      for (int r = 0; r < kThreadRows; ++r) {
        float* to = smem_.told[row + Layout::kRowStep * r];
        ptx::st_shared_float(to, merge[r].before);
        ptx::st_shared_float(to + 1, merge[r].now);
        ptx::st_shared_float(to + 2, merge[r].inverse);
      }
    }
    this->signal(&smem_.told_full);
    told_.advance();
  }
  // Of a part that is done: beside its columns, or as the result's log-sum-exp.
  SKIM_DEVICE void store_scales(int row, const Place& at, const DecodeItem& item) const {
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      const RowScale scale = merged(row, r);
      if (at.column != 0 || !at.valid(r)) continue;
      if (item.only == 0) {
        float* part = MlaEpilogue<Tr, 0>::part(r, thread_, item, p_);
        ptx::st_global_pair(part + Tr::kHeadDimV, {scale.max, scale.sum});
      } else if (p_.lse != nullptr) {
        store_lse(scale.sum, scale.max, 1.0f, r, at, p_);
      }
    }
  }

  // Zeroes what no row of the request sees of V, if this tile holds any: see seen_in_tile.
  SKIM_DEVICE void clear_unseen(int n) {
    const DecodeItem item = this->read_item();
    const Span seen = {Base::uniform(item.first_key) - n * Tr::kTileN, Base::uniform(item.base.len_k) - n * Tr::kTileN};
    if (seen.lo <= 0 && seen.hi >= Tr::kTileN) return;
    ptx::bar_sync(kUnseenBarrier, kGroupThreads);  // other warps may still read it as K
    clear_keys(0, seen.lo);
    clear_keys(seen.hi, Tr::kTileN);
    ptx::fence_proxy_async();
    ptx::bar_sync(kUnseenBarrier, kGroupThreads);
  }
  SKIM_DEVICE void clear_keys(int first, int last) {
#pragma unroll 1
    for (int panel = 0; panel < Storage::kPanelsV; ++panel) {
      uint8_t* begin = smem_.kv[kv_.slot] + panel * Storage::kKvPanelBytes;
#pragma unroll 1
      for (int at = imax(first, 0) * kPanelRowBytes + thread_ * 16; at < last * kPanelRowBytes;
           at += kGroupThreads * 16) {
        ptx::st_shared_zero16(begin + at);
      }
    }
  }

  // The vote: a tile is dropped when all valid rows of the group agree. Whether it is kept; a warp that keeps it knows,
  // and does not wait for the others.
  SKIM_DEVICE bool vote(const float (&thread_max)[kThreadRows]) {
    bool agree = true;
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      agree &= !valid_[r] | row_can_skip(thread_max[r], rows_.max[r], p_.scale_log2, limit_[r]);
    }
    bool kept = ptx::warp_any(!agree);
    DecodeVote& vote = smem_.votes[vote_.slot];
    ++votes_;
    if (thread_ % kWarpThreads == 0) {
      ptx::mbarrier_wait_parity(&vote.counted, vote_.phase ^ 1);  // the follower has read the vote before in this place
      if (kept) ptx::st_shared(&vote.kept, votes_);
      ptx::mbarrier_arrive(&vote.voted);
    }
    if (!kept) {
      ptx::mbarrier_wait_parity(&vote.voted, vote_.phase);
      kept = ptx::ld_shared(&vote.kept) == votes_;
    }
    vote_.advance();
    return ptx::warp_any(kept);  // uniform for the compiler too
  }

  float limit_[kThreadRows];
  bool valid_[kThreadRows];
  RowState rows_;  // of the leaf
};

}  // namespace skimattn::sm90
