// The consumer warpgroup of a decode CTA: 64 packed rows of one kv head against the key tiles of a part.
//
// A tile's vote is cast before P.V of the tile before it is waited for, so what V's loader has to fetch is known one
// tile early. Products are never in flight together: decode waits for memory, and the other CTA of the SM computes
// meanwhile.
#pragma once
#include <skimattn/core/score_mod.cuh>
#include <skimattn/sm90/decode/epilogue.cuh>
#include <skimattn/sm90/descriptor.cuh>

namespace skimattn::sm90 {

template <class Tr>
class DecodeConsumer {
 public:
  using Storage = DecodeStorage<Tr>;
  using Place = PackedPlace<Layout>;
  static constexpr bool kSkips = Tr::kSkip != Skip::kDense;
  static constexpr int kScores = Tr::kTileN / 2;  // floats a thread holds of a 64-row tile
  static constexpr int kOut = Tr::kHeadDimV / 2;
  static constexpr int kStepsQ = Tr::kHeadDim / 16;
  static constexpr int kUnseenBarrier = 1;  // 0 belongs to cta_sync

  SKIM_DEVICE DecodeConsumer(const Params& p, Storage& smem) : p_(p), smem_(smem), thread_(ptx::thread_index()) {}

  SKIM_DEVICE void run() {
    while (load_work()) {
      for (int leaf = lo_; leaf < hi_; ++leaf) {
        compute_leaf(leaf);
        epilogue_.add(o_, rows_, leaf, leaf == hi_ - 1, at_, smem_, p_);
      }
      finish_work();
    }
  }

 private:
  // One arrival per warp, once all its lanes are done with the buffer.
  SKIM_DEVICE void release(uint64_t* empty) const {
    ptx::warp_sync();
    if (thread_ % kWarpThreads == 0) ptx::mbarrier_arrive(empty);
  }

  // Shuffled, so that the compiler knows it to be the same in the whole warp: branches depend on it.
  SKIM_DEVICE static int uniform(int value) { return ptx::shfl(value, 0); }

  SKIM_DEVICE bool load_work() {
    ptx::mbarrier_wait_parity(&smem_.work_full[work_.slot], work_.phase);
    const DecodeItem item = read_decode_item(smem_, work_.slot);
    if (!uniform(item.base.valid)) return false;
    lo_ = uniform(item.lo);
    hi_ = uniform(item.hi);
    first_key_ = uniform(item.first_key);
    at_ = place_of(item);
    if constexpr (kSkips) {
#pragma unroll
      for (int r = 0; r < kThreadRows; ++r) limit_[r] = log2_threshold(p_, at_.batch, at_.head[r]);
    }
    epilogue_.start(item, at_, p_, thread_);
    ptx::mbarrier_wait_parity(&smem_.q_full, q_state_.phase);
    if constexpr (Tr::kQInRegisters) load_q();
    if (frees_q_early()) release(&smem_.q_empty);
    find_start_maxima({uniform(item.start.lo), uniform(item.start.hi)});
    return true;
  }

  // Where leaves are merged, that happens in Q's place.
  SKIM_DEVICE bool frees_q_early() const { return Tr::kQInRegisters && hi_ - lo_ == 1; }

  SKIM_DEVICE void finish_work() {
    if (!frees_q_early()) {
      ptx::fence_proxy_async();  // what was merged is overwritten by the next Q
      release(&smem_.q_empty);
    }
    release(&smem_.work_empty[work_.slot]);
    q_state_.advance();
    work_.advance();
  }

  SKIM_DEVICE Place place_of(const DecodeItem& item) const {
    const int qheads_per_kv = p_.qheads_per_kv, lane = thread_ % kWarpThreads;
    const int first = item.base.row0 + thread_ / kWarpThreads * 16 + lane / 4;
    Place at;
    at.column = lane % 4 * 2;
    at.batch = item.base.batch;
    at.len_q = item.base.len_q;
    at.len_k = item.base.len_k;
    at.q_offset = item.base.q_offset;
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      const int packed = first + Layout::kRowStep * r;
      at.row[r] = packed / qheads_per_kv;
      at.head[r] = item.base.head * qheads_per_kv + packed % qheads_per_kv;
      at.alibi[r] = 0.0f;
      if constexpr (Tr::kAlibi) at.alibi[r] = alibi_slope(at.batch, at.head[r], p_) * p_.bias_scale;
    }
    return at;
  }

  // What every leaf's maxima start from.
  SKIM_DEVICE void find_start_maxima(const Span& tiles) {
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) start_max_[r] = -kInf;
    if constexpr (kSkips) {
      for (int n = tiles.hi - 1; n >= tiles.lo; --n) {
        float s[kScores], thread_max[kThreadRows];
        compute_scores<true>(s, n);
        thread_maximum(s, thread_max);
#pragma unroll
        for (int r = 0; r < kThreadRows; ++r) start_max_[r] = ptx::max_nan(start_max_[r], quad_max(thread_max[r]));
      }
    }
  }

  // Note: read again for every leaf rather than kept, since the main loop has no register to spare.
  SKIM_DEVICE void compute_leaf(int leaf) {
    const DecodeItem item = read_decode_item(smem_, work_.slot);
    const Span tiles = {uniform(item.tiles_of(leaf).lo), uniform(item.tiles_of(leaf).hi)};
    const int clean_first = uniform(item.range.clean_first), clean_last = uniform(item.range.clean_last);
#pragma unroll
    for (int i = 0; i < kOut; ++i) o_[i] = 0.0f;
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      rows_.max[r] = start_max_[r];
      rows_.sum[r] = 0.0f;
    }
    for (int n = tiles.hi - 1; n >= tiles.lo; --n) {
      if (n >= clean_first && n < clean_last) {
        step<false>(n);
      } else {
        step<true>(n);
      }
    }
    if (pending_) multiply_values();
    pending_ = false;
  }

  // Raw scores of tile n, masked.
  template <bool kMasked>
  SKIM_DEVICE void compute_scores(float (&s)[kScores], int n) {
    using Wgmma = ptx::Wgmma<typename Tr::Element, Tr::kTileN>;
    ptx::mbarrier_wait_parity(&smem_.k_full[k_.slot], k_.phase);
    ptx::wgmma_fence();
    const uint64_t q = k_major(smem_.q()), k = advance(k_major(smem_.k[0]), k_.slot * Storage::kKBytes);
#pragma unroll
    for (int i = 0; i < kStepsQ; ++i) {
      const int panel = i / 4, inside = i % 4 * 32;  // four k16 steps to a 128-byte row
      const uint64_t keys = advance(k, panel * Storage::kKvPanelBytes + inside);
      if constexpr (Tr::kQInRegisters) {
        Wgmma::rs_k_major(s, q_[i], keys, i > 0);
      } else {
        Wgmma::ss(s, advance(q, panel * Storage::kQPanelBytes + inside), keys, i > 0);
      }
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    release(&smem_.k_empty[k_.slot]);
    k_.advance();
    apply_score_mod<Tr>(s, n * Tr::kTileN, at_, p_.score_scale);
    if constexpr (kMasked) mask_scores<Tr>(s, n * Tr::kTileN, at_, p_);
  }

  template <bool kMasked>
  SKIM_DEVICE void step(int n) {
    float s[kScores], thread_max[kThreadRows];
    compute_scores<kMasked>(s, n);
    thread_maximum(s, thread_max);
    bool keeps = true;
    if constexpr (kSkips) {
      keeps = warp_keeps(thread_max);
      cast_vote(keeps);
    }
    if (pending_) multiply_values();
    pending_ = !kSkips || resolve_vote(keeps);
    if (!pending_) return;
    pending_tile_ = n;
    const RowMaxUpdate update = update_row_max(thread_max, rows_, p_.scale_log2);
    exp_and_pack<typename Tr::Element>(s, Ahead<0>{}, update, p_.scale_log2, rows_, probabilities_, o_);
  }

  // O += P.V of the tile that is pending.
  SKIM_DEVICE void multiply_values() {
    ptx::mbarrier_wait_parity(&smem_.v_full[v_.slot], v_.phase);
    clear_unseen(pending_tile_);
    ptx::wgmma_fence();
    const uint64_t v = advance(mn_major(smem_.v[0], Storage::kKvPanelBytes), v_.slot * Storage::kVBytes);
#pragma unroll
    for (int i = 0; i < Tr::kTileN / 16; ++i) {
      ptx::Wgmma<typename Tr::Element, Tr::kHeadDimV>::rs(o_, probabilities_[i], advance(v, i * 16 * kPanelRowBytes));
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    release_v();
  }
  SKIM_DEVICE void release_v() {
    release(&smem_.v_empty[v_.slot]);
    v_.advance();
  }

  // Q as A operands.
  SKIM_DEVICE void load_q() {
    const int lane = thread_ % kWarpThreads, row = thread_ / kWarpThreads * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < kStepsQ; ++i) {
      const uint8_t* panel = smem_.q() + i / 4 * Storage::kQPanelBytes;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint8_t* from = panel + swizzled_offset(row, i % 4 * 16 + half * 8) + lane % 4 * 4;
        q_[i][2 * half] = ptx::ld_shared(from);
        q_[i][2 * half + 1] = ptx::ld_shared(from + 8 * kPanelRowBytes);
      }
    }
  }

  // Zeroes what no row of the request sees of V, if this tile holds any: see seen_in_tile.
  SKIM_DEVICE void clear_unseen(int n) {
    const Span seen = {first_key_ - n * Tr::kTileN, at_.len_k - n * Tr::kTileN};
    if (seen.lo <= 0 && seen.hi >= Tr::kTileN) return;
    clear_keys(0, seen.lo);
    clear_keys(seen.hi, Tr::kTileN);
    ptx::fence_proxy_async();
    ptx::bar_sync(kUnseenBarrier, kGroupThreads);
  }
  SKIM_DEVICE void clear_keys(int first, int last) {
#pragma unroll 1
    for (int panel = 0; panel < Storage::kPanelsV; ++panel) {
      uint8_t* begin = smem_.v[v_.slot] + panel * Storage::kKvPanelBytes;
#pragma unroll 1
      for (int at = imax(first, 0) * kPanelRowBytes + thread_ * 16; at < last * kPanelRowBytes;
           at += kGroupThreads * 16) {
        ptx::st_shared_zero16(begin + at);
      }
    }
  }

  // The vote: a tile is dropped when all valid rows of the group agree.
  SKIM_DEVICE bool warp_keeps(const float (&thread_max)[kThreadRows]) const {
    bool agree = true;
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      agree &= !at_.valid(r) | row_can_skip(thread_max[r], rows_.max[r], p_.scale_log2, limit_[r]);
    }
    return ptx::warp_any(!agree);
  }
  SKIM_DEVICE void cast_vote(bool keeps) {
    DecodeVote& vote = smem_.votes[vote_.slot];
    ++votes_;
    if (thread_ % kWarpThreads == 0) {
      ptx::mbarrier_wait_parity(&vote.counted, vote_.phase ^ 1);  // V's loader has read the vote before in this place
      if (keeps) ptx::st_shared(&vote.kept, votes_);
      ptx::mbarrier_arrive(&vote.voted);
    }
  }
  // Whether the tile is kept. A warp that keeps it knows, and does not wait for the others.
  SKIM_DEVICE bool resolve_vote(bool keeps) {
    DecodeVote& vote = smem_.votes[vote_.slot];
    bool kept = keeps;
    if (!keeps) {
      ptx::mbarrier_wait_parity(&vote.voted, vote_.phase);
      kept = ptx::ld_shared(&vote.kept) == votes_;
    }
    vote_.advance();
    const bool early = run_.expects_kept();
    run_.add(kept);
    if (early && !kept) {  // it was loaded for nothing
      ptx::mbarrier_wait_parity(&smem_.v_full[v_.slot], v_.phase);
      release_v();
    }
    return kept;
  }

  const Params& p_;
  Storage& smem_;
  const int thread_;
  Place at_;
  float limit_[kThreadRows];
  float start_max_[kThreadRows];
  float o_[kOut];
  uint32_t q_[Tr::kQInRegisters ? kStepsQ : 1][4];
  uint32_t probabilities_[Tr::kTileN / 16][4];
  RowState rows_;  // of the leaf
  DecodeEpilogue<Tr> epilogue_;
  int lo_, hi_;           // leaves of the part
  int first_key_;         // that some row of the request may see
  bool pending_ = false;  // whether P.V of `pending_tile_` is still to be done
  int pending_tile_ = 0;
  uint32_t votes_ = 0;
  PipelineState<Tr::kStages> k_;
  PipelineState<Tr::kStagesV> v_;  // of the tile that is pending
  PipelineState<Storage::kVoteSlots> vote_;
  PipelineState<1> q_state_;
  PipelineState<kWorkSlots> work_;
  KeptRun run_;
};

}  // namespace skimattn::sm90
