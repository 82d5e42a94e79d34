// A consumer warpgroup: 64 query rows of one head against every key tile.
//
// Q.K^T of tile j is issued before P.V of the tile before it, so the softmax of j runs while that product is in the
// tensor cores; the groups of a CTA take turns issuing (NamedBarrier::kOrder), so one group's softmax also runs under
// the other's products. A skipped tile's P.V is never issued: `pending_` says whether P holds one to be done.
#pragma once
#include <skimattn/core/score_mod.cuh>
#include <skimattn/core/skip.cuh>
#include <skimattn/core/transposed.cuh>
#include <skimattn/sm90/descriptor.cuh>
#include <skimattn/sm90/prefill/epilogue.cuh>
#include <skimattn/sm90/prefill/storage.cuh>
#include <skimattn/sm90/softmax.cuh>

namespace skimattn::sm90 {

template <class Tr>
class Consumer {
 public:
  using Storage = SharedStorage<Tr>;
  using Bars = NamedBarrier<Tr>;
  using Element = typename Tr::Element;
  using Place = FragmentPlace<Layout>;
  static constexpr bool kSkips = Tr::kSkip != Skip::kDense, kScaled = kDescaled<Element>;
  // 8-bit products keep some 14 bits of what they are added to: P.V of a tile is a sum of its own, unless it is too
  // wide.
  static constexpr bool kSumsTiles = kScaled && Tr::kHeadDimV <= 128;
  static constexpr OldSums kOldSums = !kScaled && Tr::kHeadDimV <= 128 ? OldSums::kFirst : OldSums::kLast;  // measured
  static constexpr int kStepElements = 8 * kPerWord<Element>;  // of K in one product
  static constexpr int kScores = Tr::kTileN / 2;               // floats a thread holds of a 64-row tile
  static constexpr int kOut = Tr::kHeadDimV / 2;

  SKIM_DEVICE Consumer(const Params& p, Storage& smem, int group)
      : p_(p), smem_(smem), group_(group), thread_(ptx::thread_index() % kGroupThreads) {}

  SKIM_DEVICE void run() {
    // The first turn is the first group's.
    if (group_ == Tr::kConsumers - 1) ptx::bar_arrive(Bars::kOrder, 2 * kGroupThreads);
    while (load_work()) {
      mainloop();
      epilogue();
    }
    if (group_ == 0) ptx::bar_sync(Bars::kOrder, 2 * kGroupThreads);  // takes the last turn, which nobody used
    Epilogue<Tr>::drain(thread_);
  }

 private:
  SKIM_DEVICE int work_slot() const { return items_ % kWorkSlots; }
  SKIM_DEVICE int q_slot() const { return items_ % Tr::kStagesQ; }

  // Note: read again at the end of an item rather than kept, since the main loop has no register to spare.
  SKIM_DEVICE WorkItem read_item() const {
    const WorkItem item = read_work(smem_, work_slot());
    // Shuffled, so that the compiler knows them to be the same in the whole warp: branches depend on them.
    return {ptx::shfl(item.valid, 0),    ptx::shfl(item.batch, 0),   ptx::shfl(item.head, 0),
            ptx::shfl(item.row0, 0),     ptx::shfl(item.len_q, 0),   ptx::shfl(item.len_k, 0),
            ptx::shfl(item.q_offset, 0), ptx::shfl(item.k_offset, 0)};
  }

  // One arrival per warp, once all its lanes are done with the buffer.
  SKIM_DEVICE void release(uint64_t* empty) {
    ptx::warp_sync();
    if (thread_ % kWarpThreads == 0) ptx::mbarrier_arrive(empty);
  }

  SKIM_DEVICE Place place_of(const WorkItem& item) const {
    const int lane = thread_ % kWarpThreads, warp = thread_ / kWarpThreads;
    return {item.row0 + group_ * Tr::kGroupRows + warp * 16 + lane / 4,
            lane % 4 * 2,
            item.batch,
            item.head,
            item.len_q,
            item.len_k,
            item.q_offset,
            0.0f};
  }

  SKIM_DEVICE TileRange group_range(const WorkItem& item) const {
    return visited_range<Tr>(item, item.row0 + group_ * Tr::kGroupRows, Tr::kGroupRows, p_);
  }

  // Receives the next item and resets the state of a row; false where there is no more work.
  SKIM_DEVICE bool load_work() {
    ptx::mbarrier_wait_parity(&smem_.work_full[work_slot()], items_ / kWorkSlots & 1);
    const WorkItem item = read_item();
    if (!item.valid) return false;
    at_ = place_of(item);
    if constexpr (Tr::kAlibi) at_.alibi = alibi_slope(item.batch, item.head, p_) * p_.bias_scale;
    if constexpr (kScaled) apply_descales(item);
    if constexpr (kSkips) limit_ = log2_threshold(p_, item.batch, item.head);
#pragma unroll
    for (int i = 0; i < kOut; ++i) o_[i] = 0.0f;
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      rows_.max[r] = -kInf;
      rows_.sum[r] = 0.0f;
    }
    own_ = group_range(item);
    const TileRange all = cta_range<Tr>(item, p_);
    first_ = all.first;
    last_ = all.last;
    return true;
  }

  // What one unit of a product counts: inside the softcap where there is one.
  SKIM_DEVICE void apply_descales(const WorkItem& item) {
    unit_ = qk_descale(p_, item.batch, item.head / (p_.heads_q / p_.heads_kv));
    if constexpr (Tr::kAlibi && !Tr::kSoftcap) at_.alibi /= unit_;
  }
  SKIM_DEVICE float scale_log2() const { return Epilogue<Tr>::scale_log2(unit_, p_); }
  SKIM_DEVICE float score_scale() const { return kScaled ? p_.score_scale * unit_ : p_.score_scale; }

  SKIM_DEVICE void mainloop() {
    ptx::mbarrier_wait_parity(&smem_.q_full[q_slot()][group_], items_ / Tr::kStagesQ & 1);
    load_q();
    const int tiles = last_ - first_;
    if (tiles > 0) {
      step<true, PrevTile::kNone>(visited(0));
      clear_unseen(visited(0));
      int i = 1;
      // Masked tiles, and the one after a sink, which is the last of all; then whole ones; then the far edge.
      for (; i < tiles && ((Tr::kSinkFirst && i == 1) || visited(i) >= own_.clean_last); ++i) {
        next_step<true>(visited(i));
        clear_unseen(visited(i));
      }
      walk_whole_tiles(i, tiles);
      if constexpr (kHidesFirstKeys<Tr::kMask>) {
        for (; i < tiles; ++i) {
          next_step<true>(visited(i));
          clear_unseen(visited(i));
        }
      }
      last_product();
    }
    if constexpr (Tr::kSeparateO) release(&smem_.q_empty[q_slot()][group_]);
  }

  // Where there are as many K slots as V slots, one ring serves both: fewer instructions in the main loop.
  SKIM_DEVICE PipelineState<Tr::kStages> key_state() const {
    if constexpr (Tr::kStages == Tr::kStagesV) {
      return v_;
    } else {
      return k_;
    }
  }

  SKIM_DEVICE int visited(int i) const { return visited_tile<Tr::kSinkFirst>(first_, last_, i); }

  // What the tile before this one left to do: nothing (there was none), only its V to hand back, or its P.V.
  enum class PrevTile { kNone, kSkipped, kKept };

  // Note: two bodies, not one with a branch around P.V: ptxas serialises matrix products that are in flight where
  // paths join.
  template <bool kMasked>
  SKIM_DEVICE void next_step(int n) {
    if (!kSkips || pending_) {
      step<kMasked, PrevTile::kKept>(n);
    } else {
      step<kMasked, PrevTile::kSkipped>(n);
    }
  }

  // Runs of kept and of skipped tiles each have a loop of their own, so that nothing is decided twice in a run.
  SKIM_DEVICE void walk_whole_tiles(int& i, int tiles) {
    const int end = imin(tiles, last_ - own_.clean_first + (Tr::kSinkFirst ? 1 : 0));
    if constexpr (kSkips) {
      while (i < end) {
        for (; i < end && pending_; ++i) step<false, PrevTile::kKept>(visited(i));
        for (; i < end && !pending_; ++i) step<false, PrevTile::kSkipped>(visited(i));
      }
    } else {
      for (; i < end; ++i) step<false, PrevTile::kKept>(visited(i));
    }
  }

  template <bool kMasked, PrevTile kPrev>
  SKIM_DEVICE void step(int n) {
    float s[kScores];
    const PipelineState<Tr::kStagesV> prev = v_.previous();
    const PipelineState<Tr::kStages> keys = key_state();
    ptx::mbarrier_wait_parity(&smem_.k_full[keys.slot], keys.phase);
    ptx::bar_sync(Bars::kOrder + group_, 2 * kGroupThreads);
    issue_qk(s, keys.slot);
    ptx::wgmma_commit();
    if constexpr (kPrev == PrevTile::kKept) {
      issue_pv(prev);
      ptx::wgmma_commit();
    }
    ptx::bar_arrive(Bars::kOrder + (group_ + 1) % Tr::kConsumers, 2 * kGroupThreads);
    if constexpr (kPrev == PrevTile::kSkipped) return_v(prev);  // while the product runs
    ptx::wgmma_wait<kPrev == PrevTile::kKept ? 1 : 0>();
    release(&smem_.k_empty[keys.slot]);
    k_.advance();
    v_.advance();

    apply_score_mod<Tr>(s, n * Tr::kTileN, at_, score_scale());
    if constexpr (kMasked) mask_scores<Tr>(s, n * Tr::kTileN, at_, p_);
    float thread_max[kThreadRows];
    thread_maximum(s, thread_max);
    RowState raised = rows_;
    RowMaxUpdate update;
    // A tile after a kept one is most often kept: what can be computed before the answer to the vote is.
    // Tiles whose P.V has registers of its own leave none for it.
    constexpr bool kExpectKept = kPrev == PrevTile::kKept && (!kScaled || Tr::kHeadDimV <= 64);
    // Measured: with two groups 1 and 2 gain less and 8 loses; three groups hide enough, and 256 columns have no room.
    constexpr int kAhead = kSkips && kExpectKept && Tr::kConsumers == 2 && Tr::kHeadDimV <= 128 ? 4 : 0;
    Ahead<kAhead> ahead;
    // Asked for here, where the answer's latency hides behind the shuffles below.
    const bool keeps = kSkips && warp_keeps(thread_max);
    if constexpr (kExpectKept) {
      update = update_row_max(thread_max, raised, scale_log2());
      ahead.compute(s, update.base[0] - kGain<Element>, scale_log2());
    }
    if constexpr (kSkips) {
      ++votes_;
      const PipelineState<Storage::kVoteSlots> tile = v_.previous();
      Vote& vote = smem_.votes[tile.slot][group_];
      // Note: one `if` for the warp's own word and one for the others': a common answer would be computed, not branched
      // on.
      if (keeps) {
        if (speaks()) ptx::st_shared(&vote.kept, votes_);
        if (speaks()) ptx::mbarrier_arrive(&vote.voted);
      } else if (all_skip(vote, tile.phase)) {
        if constexpr (kPrev == PrevTile::kKept) finish_product(prev);
        if constexpr (kPrev == PrevTile::kKept) add_products();
        pending_ = false;
        return;
      }
      pending_ = true;
    }
    if constexpr (!kExpectKept) update = update_row_max(thread_max, raised, scale_log2());
    rows_ = raised;
    if constexpr (kPrev == PrevTile::kKept) finish_product(prev);
    if constexpr (kSumsTiles) {
      exp_and_pack_with<Element, kOut>(s, ahead, update, scale_log2(), rows_, probabilities_, [&](int i) {
        if constexpr (kPrev == PrevTile::kKept) add_product(i);
      });
      kept_ = update;
    } else {
      exp_and_pack<Element, kOldSums>(s, ahead, update, scale_log2(), rows_, probabilities_, o_);
    }
  }

  // The first steps of Q as A operands: what they no longer read from shared memory per tile is what a skipping
  // kernel's loads need, and more of them would crowd the register ports instead.
  SKIM_DEVICE void load_q() {
    const int lane = thread_ % kWarpThreads, row = thread_ / kWarpThreads * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < Tr::kQRegisterSteps; ++i) {
      const uint8_t* panel = smem_.q(q_slot(), group_) + i / 4 * Storage::kQPanelBytes;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint8_t* from = panel + swizzled_offset(row, i % 4 * 16 + half * 8) + lane % 4 * 4;
        q_[i][2 * half] = ptx::ld_shared(from);
        q_[i][2 * half + 1] = ptx::ld_shared(from + 8 * kPanelRowBytes);
      }
    }
  }

  SKIM_DEVICE void issue_qk(float (&s)[kScores], int slot) {
    using Wgmma = ptx::Wgmma<Element, Tr::kTileN>;
    ptx::wgmma_fence();
    const uint64_t q = k_major(smem_.q(q_slot(), group_)), k = advance(k_major(smem_.k[0]), slot * Storage::kKBytes);
#pragma unroll
    for (int i = 0; i < Tr::kHeadDim / kStepElements; ++i) {
      const int panel = i / 4, inside = i % 4 * kStepBytes;  // four steps to a 128-byte row
      const uint64_t keys = advance(k, panel * Storage::kKvPanelBytes + inside);
      if (i < Tr::kQRegisterSteps) {
        Wgmma::rs_k_major(s, q_[i], keys, i > 0);
      } else {
        Wgmma::ss(s, advance(q, panel * Storage::kQPanelBytes + inside), keys, i > 0);
      }
    }
  }

  SKIM_DEVICE void issue_pv(PipelineState<Tr::kStagesV> prev) {
    ptx::mbarrier_wait_parity(&smem_.v_full[prev.slot], prev.phase);
    ptx::wgmma_fence();  // for this product's registers; the compiler inserts one where it is missing, and serialises
    if constexpr (Storage::kTransposedV) {
      multiply_transposed(advance(k_major(smem_.v[0]), prev.slot * Storage::kVBytes));
    } else {
      const uint64_t v = advance(mn_major(smem_.v[0], Storage::kKvPanelBytes), prev.slot * Storage::kVBytes);
#pragma unroll
      for (int i = 0; i < Tr::kTileN / 16; ++i) {
        ptx::Wgmma<Element, Tr::kHeadDimV>::rs(o_, probabilities_[i], advance(v, i * 16 * kPanelRowBytes));
      }
    }
  }
  SKIM_DEVICE void multiply_transposed(uint64_t v) {
    constexpr int kParts = Transposed<Tr>::kParts, kPartOut = kOut / kParts;
    float* const to = kSumsTiles ? product_ : o_;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      auto& o = *reinterpret_cast<float (*)[kPartOut]>(to + part * kPartOut);
#pragma unroll
      for (int i = 0; i < Tr::kTileN / kStepElements; ++i) {
        ptx::Wgmma<Element, Transposed<Tr>::kColumns>::rs_k_major(
            o, probabilities_[i], advance(v, part * Tr::kTileN + i * kStepBytes), !kSumsTiles || i > 0);
      }
    }
  }

  SKIM_DEVICE void add_product(int i) { o_[i] = fmaf(o_[i], kept_.acc_scale[Layout::row(i)], product_[i]); }
  SKIM_DEVICE void add_products() {
    if constexpr (kSumsTiles) {
#pragma unroll
      for (int i = 0; i < kOut; ++i) add_product(i);
    }
  }

  // Waits for the product of the tile before this one and hands its V back.
  SKIM_DEVICE void finish_product(PipelineState<Tr::kStagesV> prev) {
    ptx::wgmma_wait<0>();
    release(&smem_.v_empty[prev.slot]);
  }

  // Hands back a V that was not used.
  // Note: it must still be seen full: the parity of a phase that was never waited for would be taken for the one
  // before it.
  SKIM_DEVICE void return_v(PipelineState<Tr::kStagesV> prev) {
    ptx::mbarrier_wait_parity(&smem_.v_full[prev.slot], prev.phase);
    release(&smem_.v_empty[prev.slot]);
  }

  SKIM_DEVICE void last_product() {
    const PipelineState<Tr::kStagesV> prev = v_.previous();
    if (!kSkips || pending_) {
      issue_pv(prev);
      ptx::wgmma_commit();
      finish_product(prev);
      add_products();
    } else {
      return_v(prev);
    }
  }

  // Zeroes what no row of the request sees of V, if this tile holds any: see seen_in_tile. The groups share the work
  // before any of them may use the tile, and none of them holds the turn meanwhile. What transposes V has done so.
  // Note: all of them come here for such a tile, since none of them sees it whole.
  SKIM_DEVICE void clear_unseen(int n) {
    const Span seen = seen_in_tile<Tr>(at_.len_q, at_.len_k, n, p_);
    if (Storage::kTransposedV || (seen.lo <= 0 && seen.hi >= Tr::kTileN)) return;
    const PipelineState<Tr::kStagesV> prev = v_.previous();
    ptx::mbarrier_wait_parity(&smem_.v_full[prev.slot], prev.phase);
    smem_.clear_values(prev.slot, 0, seen.lo);
    smem_.clear_values(prev.slot, seen.hi, Tr::kTileN);
    ptx::fence_proxy_async();
    ptx::bar_sync(Bars::kUnseen, Tr::kConsumers * kGroupThreads);
  }

  // The vote. A tile is dropped when all valid rows of the group agree. A warp in which one does not knows the answer:
  // it leaves word and goes on. Only warps that would skip wait for the others' word, so a tile that everybody keeps
  // costs no synchronisation. The loader of V listens too.
  // Note: `kept` is not written again before every warp has read it: the turn barrier lies between two votes.
  SKIM_DEVICE bool warp_keeps(const float (&thread_max)[kThreadRows]) const {
    bool agree = true;
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      // Rows past the end belong to a neighbour, or to nobody: they have no vote.
      agree &= !at_.valid(r) | row_can_skip(thread_max[r], rows_.max[r], scale_log2(), limit_);
    }
    return ptx::warp_any(!agree);
  }

  SKIM_DEVICE bool speaks() const { return thread_ % kWarpThreads == 0; }

  SKIM_DEVICE bool all_skip(Vote& vote, uint32_t phase) {
    if (speaks()) ptx::mbarrier_arrive(&vote.voted);
    ptx::mbarrier_wait_parity(&vote.voted, phase);
    return ptx::ld_shared(&vote.kept) != votes_;
  }

  SKIM_DEVICE void epilogue() {
    const WorkItem item = read_item();
    Epilogue<Tr>::store(o_, rows_, unit_, place_of(item), item, p_, smem_, group_, thread_);
    release(&smem_.work_empty[work_slot()]);
    ++items_;
  }

  const Params& p_;
  Storage& smem_;
  const int group_, thread_;
  Place at_;
  TileRange own_;      // of this group's rows
  int first_, last_;   // of all the CTA's rows: every group walks them all
  float unit_ = 1.0f;  // what a product of 8-bit elements counts
  float limit_ = -kInf;
  uint32_t votes_ = 0;
  bool pending_ = false;
  float o_[kOut];
  float product_[kSumsTiles ? kOut : 1];  // P.V of one tile
  RowMaxUpdate kept_;                     // what that tile does to O before it is added
  uint32_t q_[imax(Tr::kQRegisterSteps, 1)][4];
  uint32_t probabilities_[kOperands<Element, kScores>][4];
  RowState rows_;
  PipelineState<Tr::kStages> k_;
  PipelineState<Tr::kStagesV> v_;  // of the same tile as k_; the V that is due lies one before it
  uint32_t items_ = 0;
};

}  // namespace skimattn::sm90
