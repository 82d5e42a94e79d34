// The softmax warpgroup of a decode CTA: 64 packed rows of one kv head, half a row a thread. It reads a tile's scores
// from tensor memory, votes on the tile, tells correction what O is to be multiplied with, and writes probabilities
// over the scores. A skipped tile takes part in every signal all the same: only its exponentials and its product do not
// happen.
#pragma once
#include <skimattn/core/descale.cuh>
#include <skimattn/core/score_mod.cuh>
#include <skimattn/sm100/decode/storage.cuh>
#include <skimattn/sm100/exponentials.cuh>

namespace skimattn::sm100 {

template <class Tr>
class DecodeSoftmax {
 public:
  using Storage = DecodeStorage<Tr>;
  using Columns = DecodeColumns<Tr>;
  using Element = typename Tr::Element;
  using Place = PackedPlace<LaneFragment>;
  static constexpr bool kSkips = Tr::kSkip != Skip::kDense;
  static constexpr bool kScaled = kDescaled<Element>;
  static constexpr int kScores = Tr::kTileN / 2;               // that a thread holds
  static constexpr int kSplitP = kScores / kPerWord<Element>;  // columns from a row's first half of P to its second

  SKIM_DEVICE DecodeSoftmax(const Params& p, Storage& smem)
      : p_(p),
        smem_(smem),
        thread_(ptx::thread_index() % kGroupThreads),
        scores_(ptx::ld_shared(&smem.tmem_address) + tmem_lanes(thread_ / kWarpThreads)) {}

  SKIM_DEVICE void run() {
    for (DecodeItem item = receive(); item.base.valid; item = receive()) {
      find_row(item);
      const float start = start_maximum(item.start);
#pragma unroll 1
      for (int leaf = item.lo; leaf < item.hi; ++leaf) compute_leaf(item.tiles_of(leaf), item.range, start);
    }
  }

 private:
  SKIM_DEVICE DecodeItem receive() {
    const DecodeItem item = receive_item(smem_, work_);
    release(&smem_.work_empty[work_.slot]);
    work_.advance();
    return item;
  }

  // Which row it is, and all that follows from that alone.
  SKIM_DEVICE void find_row(const DecodeItem& item) {
    const int packed = item.base.row0 + half_row(thread_), row = packed / p_.qheads_per_kv;
    const int head = item.base.head * p_.qheads_per_kv + packed % p_.qheads_per_kv;
    at_ = {{row}, {head}, 0, item.base.batch, item.base.len_q, item.base.len_k, item.base.q_offset, {0.0f}};
    if constexpr (Tr::kAlibi) at_.alibi[0] = alibi_slope(at_.batch, head, p_) * p_.bias_scale;
    if constexpr (kScaled) {
      unit_ = qk_descale(p_, item.base.batch, item.base.head);
      if constexpr (Tr::kAlibi && !Tr::kSoftcap) at_.alibi[0] /= unit_;
    }
    if constexpr (kSkips) limit_ = log2_threshold(p_, at_.batch, head);
    span_ = visible_keys<Tr::kMask>(at_.diagonal(0), at_.len_k, p_);
  }
  // Note: written so that without descales both are constants, which take no register.
  SKIM_DEVICE float scale_log2() const { return kScaled && !Tr::kSoftcap ? p_.scale_log2 * unit_ : p_.scale_log2; }
  SKIM_DEVICE float score_scale() const { return kScaled ? p_.score_scale * unit_ : p_.score_scale; }

  // What every leaf's maximum starts from.
  SKIM_DEVICE float start_maximum(const Span& start) {
    float max = -kInf;
#pragma unroll 1
    for (int n = start.hi - 1; kSkips && n >= start.lo; --n) {
      float s[kScores];
      load_scores<true>(s, n);
      max = ptx::max_nan(max, of_whole_row(row_maximum(s)));
      release_tmem(&smem_.p_full[s_.slot]);
      release_tmem(&smem_.p_full[s_.slot]);  // for correction, which has no part in it
      s_.advance();
    }
    return max;
  }

  SKIM_DEVICE void compute_leaf(const Span& tiles, const TileRange& range, float start) {
    row_ = {start, start == kInf ? kNan : start, 0.0f};
    started_ = false;
#pragma unroll 1
    for (int n = tiles.hi - 1; n >= tiles.lo; --n) {
      if (n >= range.clean_first && n < range.clean_last) {
        step<false>(n);
      } else {
        step<true>(n);
      }
      release_tmem(&smem_.p_full[s_.slot]);
      s_.advance();
    }
    const float sum = (row_.sum + ptx::shfl_xor(row_.sum, kHalfWarp)) * kSumUnit<Element>;
    tell(row_.base == -kInf ? -kInf : row_.base * scale_log2(), sum);
  }

  template <bool kMasked>
  SKIM_DEVICE void step(int n) {
    float s[kScores];
    load_scores<kMasked>(s, n);
    const float half_max = row_maximum(s);
    if (kSkips && is_skipped(half_max)) {
      tell(1.0f, 0.0f);
      return;
    }
    const float acc_scale = update_row_max<Element>(row_, of_whole_row(half_max), scale_log2());
    tell(started_ ? acc_scale : 1.0f, 0.0f);  // a first product writes O, whatever was there
    started_ = true;
    exp_and_pack<Element, kSplitP>(s, acc_scale, scale_log2(), row_, scores_ + Columns::s(s_.slot));
  }

  SKIM_DEVICE static float of_whole_row(float half_max) {
    return ptx::max_nan(half_max, ptx::shfl_xor(half_max, kHalfWarp));
  }

  // Scores of this thread's half of tile n.
  template <bool kMasked>
  SKIM_DEVICE void load_scores(float (&s)[kScores], int n) {
    constexpr int kPart = 32;
    const uint32_t from = scores_ + Columns::s(s_.slot);
    const int key0 = n * Tr::kTileN + half_of(thread_) * kScores;
    wait_tmem(&smem_.s_full[s_.slot], s_.phase);
#pragma unroll
    for (int i = 0; i < kScores; i += kPart) ptx::tcgen05_ld_halves<kPart, kScores>(s + i, from + i);
#pragma unroll
    for (int i = 0; i < kScores; i += kPart) ptx::tcgen05_wait_ld<kPart>(s + i);
    apply_score_mod<Tr>(s, key0, at_, score_scale());
    if constexpr (kMasked) mask_row<Tr>(s, 0, span_, key0, at_, p_);
  }

  SKIM_DEVICE void tell(float first, float second) {
    ptx::mbarrier_wait_parity(&smem_.told_empty, told_phase_ ^ 1);
    told_phase_ ^= 1;
    if (half_of(thread_) == 0) {
      ptx::st_shared(&smem_.told[0][half_row(thread_)], __builtin_bit_cast(uint32_t, first));
      ptx::st_shared(&smem_.told[1][half_row(thread_)], __builtin_bit_cast(uint32_t, second));
    }
    release(&smem_.told_full);
  }

  // The vote. A tile is dropped when all valid rows of the group agree. A warp in which one does not knows the answer:
  // it leaves word and goes on. Only warps that would skip wait for the others' word. V's loader waits for all, and
  // says when it has read the answer; the others who want it hear from the softmax when it is there.
  SKIM_DEVICE bool is_skipped(float half_max) {
    DecodeVote& vote = smem_.votes[vote_.slot];
    const bool agree = !at_.valid(0) | row_can_skip(half_max, row_.max, scale_log2(), limit_);
    const bool keeps = ptx::warp_any(!agree);
    const uint32_t phase = vote_.phase;
    vote_.advance();
    ++votes_;
    if (thread_ % kWarpThreads == 0) {
      ptx::mbarrier_wait_parity(&vote.counted, phase ^ 1);
      if (keeps) ptx::st_shared(&vote.kept, votes_);
      ptx::mbarrier_arrive(&vote.voted);
    }
    if (keeps) return false;
    ptx::mbarrier_wait_parity(&vote.voted, phase);
    return ptx::ld_shared(&vote.kept) != votes_;
  }

  const Params& p_;
  Storage& smem_;
  const int thread_;
  const uint32_t scores_;  // tensor memory: the first column of this warp's lanes
  Place at_;
  Span span_;     // keys that the mask's geometry lets this row see
  RowState row_;  // of the leaf; the sum of this thread's half only
  bool started_ = false;
  float unit_ = 1.0f;  // what a product of 8-bit elements counts
  float limit_ = -kInf;
  uint32_t votes_ = 0, told_phase_ = 0;
  PipelineState<Columns::kScoreSlots> s_;
  PipelineState<Storage::kVoteSlots> vote_;
  PipelineState<kWorkSlots> work_;
};

}  // namespace skimattn::sm100
