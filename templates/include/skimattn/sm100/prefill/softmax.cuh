// A softmax warpgroup: 128 query rows of one head against every key tile, one row a thread. It reads a tile's scores
// from tensor memory, decides with its group whether the tile counts, tells correction what O is to be multiplied with,
// and writes probabilities over the second half of the scores. A skipped tile takes part in every signal all the same:
// only its exponentials and its product do not happen.
#pragma once
#include <skimattn/core/descale.cuh>
#include <skimattn/core/output.cuh>
#include <skimattn/core/score_mod.cuh>
#include <skimattn/core/skip.cuh>
#include <skimattn/sm100/exponentials.cuh>
#include <skimattn/sm100/prefill/storage.cuh>

namespace skimattn::sm100 {

template <class Tr>
class Softmax {
 public:
  using Storage = SharedStorage<Tr>;
  using Element = typename Tr::Element;
  using Place = FragmentPlace<LaneFragment>;
  static constexpr bool kSkips = Tr::kSkip != Skip::kDense;
  static constexpr bool kScaled = kDescaled<Element>;
  static constexpr int kScores = Tr::kTileN;

  SKIM_DEVICE Softmax(const Params& p, Storage& smem, int group)
      : p_(p),
        smem_(smem),
        group_(group),
        thread_(ptx::thread_index() % kGroupThreads),
        scores_(ptx::ld_shared(&smem.tmem_address) + TmemColumns<Tr>::s(group) + tmem_lanes(thread_ / kWarpThreads)) {}

  SKIM_DEVICE void run() {
    for (; load_work(); ++items_) {
      mainloop();
      epilogue();
    }
  }

 private:
  SKIM_DEVICE int work_slot() const { return items_ % kWorkSlots; }
  SKIM_DEVICE int row0(const WorkItem& item) const { return item.row0 + group_ * Tr::kGroupRows; }

  SKIM_DEVICE Place place_of(const WorkItem& item) const {
    return {row0(item) + thread_, 0, item.batch, item.head, item.len_q, item.len_k, item.q_offset, 0.0f};
  }

  // Receives the next item and resets the state of the row; false where there is no more work.
  SKIM_DEVICE bool load_work() {
    ptx::mbarrier_wait_parity(&smem_.work_full[work_slot()], items_ / kWorkSlots & 1);
    const WorkItem item = read_work(smem_, work_slot());
    if (!item.valid) return false;
    at_ = place_of(item);
    if constexpr (Tr::kAlibi) at_.alibi = alibi_slope(item.batch, item.head, p_) * p_.bias_scale;
    if constexpr (kScaled) apply_descales(item);
    if constexpr (kSkips) limit_ = log2_threshold(p_, item.batch, item.head);
    row_ = RowState{};
    span_ = visible_keys<Tr::kMask>(at_.diagonal(0), at_.len_k, p_);
    own_ = visited_range<Tr>(item, row0(item), Tr::kGroupRows, p_);
    all_ = cta_range<Tr>(item, p_);
    return true;
  }

  // What one unit of a product counts: inside the softcap where there is one.
  SKIM_DEVICE void apply_descales(const WorkItem& item) {
    unit_ = qk_descale(p_, item.batch, item.head / (p_.heads_q / p_.heads_kv));
    if constexpr (Tr::kAlibi && !Tr::kSoftcap) at_.alibi /= unit_;
  }
  // Note: written so that without descales both are constants, which take no register.
  SKIM_DEVICE float scale_log2() const { return kScaled && !Tr::kSoftcap ? p_.scale_log2 * unit_ : p_.scale_log2; }
  SKIM_DEVICE float score_scale() const { return kScaled ? p_.score_scale * unit_ : p_.score_scale; }

  // The order of visited_tile: the first tile where it is a sink, then all others from the last one down.
  SKIM_DEVICE void mainloop() {
    if (all_.last == all_.first) return;
    const int end = all_.first + (Tr::kSinkFirst ? 1 : 0);
    int n = Tr::kSinkFirst ? all_.first : all_.last - 1;
#pragma unroll 1
    do {
      if (needs_mask(n)) {
        step<true>(n);
      } else {
        step<false>(n);
      }
      n = n < end ? all_.last - 1 : n - 1;
    } while (n >= end);
  }

  SKIM_DEVICE bool needs_mask(int n) const { return n >= own_.clean_last || n < own_.clean_first; }

  template <bool kMasked>
  SKIM_DEVICE void step(int n) {
    float s[kScores];
    load_scores(s);
    apply_score_mod<Tr>(s, n * Tr::kTileN, at_, score_scale());
    if constexpr (kMasked) mask_row<Tr>(s, 0, span_, n * Tr::kTileN, at_, p_);
    const float tile_max = row_maximum(s);
    if constexpr (kSkips) {
      if (is_skipped(tile_max)) {
        tell_acc_scale(1.0f);
        release_tmem(&smem_.p_full[group_]);
        ++tile_;
        return;
      }
    }
    const float acc_scale = update_row_max<Element>(row_, tile_max, scale_log2());
    tell_acc_scale(acc_scale);
    exp_and_pack<Element>(s, acc_scale, scale_log2(), row_, scores_ + TmemColumns<Tr>::kP);
    release_tmem(&smem_.p_full[group_]);
    ++tile_;
  }

  SKIM_DEVICE void load_scores(float (&s)[kScores]) {
    constexpr int kPart = 32;
    wait_tmem(&smem_.s_full[group_], tile_ & 1);
#pragma unroll
    for (int i = 0; i < kScores; i += kPart) ptx::tcgen05_ld<kPart>(s + i, scores_ + i);
#pragma unroll
    for (int i = 0; i < kScores; i += kPart) ptx::tcgen05_wait_ld<kPart>(s + i);
  }

  // Note: fenced as for tensor memory: correction knows from this signal, by way of s_full, that the group's product
  // before is in O.
  SKIM_DEVICE void tell_acc_scale(float acc_scale) {
    ptx::st_shared(&smem_.acc_scale[group_][thread_], __builtin_bit_cast(uint32_t, acc_scale));
    release_tmem(&smem_.acc_scale_full[group_]);
  }

  // The vote. A tile is dropped when all valid rows of the group agree. A warp in which one does not knows the answer:
  // it leaves word and goes on. Only warps that would skip wait for the others' word. The warp that issues products and
  // the loader of V listen too.
  // Note: `kept` is not written again before all have read it: kVoteSlots - 1 other votes come first.
  SKIM_DEVICE bool is_skipped(float tile_max) {
    Vote& vote = smem_.votes[tile_ % Storage::kVoteSlots][group_];
    const uint32_t parity = tile_ / Storage::kVoteSlots & 1, number = tile_ + 1;
    // Rows past the end belong to a neighbour, or to nobody: they have no vote.
    const bool agree = !at_.valid(0) | row_can_skip(tile_max, row_.max, scale_log2(), limit_);
    const bool speaks = thread_ % kWarpThreads == 0;
    if (ptx::warp_any(!agree)) {
      if (speaks) ptx::st_shared(&vote.kept, number);
      if (speaks) ptx::mbarrier_arrive(&vote.voted);
      return false;
    }
    if (speaks) ptx::mbarrier_arrive(&vote.voted);
    ptx::mbarrier_wait_parity(&vote.voted, parity);
    return ptx::ld_shared(&vote.kept) != number;
  }

  // The row's LSE, and what its output is to be multiplied with.
  // Note: the item is read again rather than kept, since the main loop has no register to spare; nor for the address of
  // its slot, which compilers keep unless it comes out of a shuffle.
  SKIM_DEVICE void epilogue() {
    const int slot = ptx::shfl(work_slot(), 0);
    const WorkItem item = read_work(smem_, slot);
    const Place at = place_of(item);
    const float sum = row_.sum * kSumUnit<Element>;
    float inverse = inverse_of(sum, row_.base, scale_log2(), item.head, p_);
    if constexpr (kScaled) {
      inverse *= kSumUnit<Element> * v_descale(p_, item.batch, item.head / (p_.heads_q / p_.heads_kv));
    }
    if (p_.lse != nullptr && at.valid(0)) store_lse(sum, row_.base, scale_log2(), 0, at, p_);
    ptx::mbarrier_wait_parity(&smem_.inverse_empty[group_], (items_ & 1) ^ 1);
    ptx::st_shared(&smem_.inverse[group_][thread_], __builtin_bit_cast(uint32_t, inverse));
    release(&smem_.inverse_full[group_]);
    release(&smem_.work_empty[slot]);
  }

  const Params& p_;
  Storage& smem_;
  const int group_, thread_;
  const uint32_t scores_;  // tensor memory: the first column of S in this warp's lanes
  Place at_;
  Span span_;            // keys that the mask's geometry lets this row see
  TileRange own_, all_;  // of this group's rows; of all the CTA's rows: every group walks them all
  RowState row_;
  float unit_ = 1.0f;  // what a product of 8-bit elements counts
  float limit_ = -kInf;
  uint32_t items_ = 0, tile_ = 0;  // seen so far
};

}  // namespace skimattn::sm100
