// The correction warpgroup of a decode CTA: keeps the output in tensor memory in step with the softmax, half a row a
// thread, merges every leaf's into those before it, and stores.
#pragma once
#include <skimattn/core/descale.cuh>
#include <skimattn/core/output.cuh>
#include <skimattn/sm100/decode/storage.cuh>

namespace skimattn::sm100 {

template <class Tr>
class DecodeCorrection {
 public:
  using Storage = DecodeStorage<Tr>;
  static constexpr int kOut = Tr::kHeadDimV / 2;  // columns of a thread
  static constexpr int kChunk = 16;               // columns at a time
  using Place = PackedPlace<LaneFragment>;

  SKIM_DEVICE DecodeCorrection(const Params& p, Storage& smem)
      : p_(p),
        smem_(smem),
        thread_(ptx::thread_index() % kGroupThreads),
        output_(ptx::ld_shared(&smem.tmem_address) + tmem_lanes(thread_ / kWarpThreads) + DecodeColumns<Tr>::kO) {}

  SKIM_DEVICE void run() {
    while (load_work()) {
      const int last = read_item().hi;
#pragma unroll 1
      for (int leaf = read_item().lo; leaf < last;) {
        const int end = imin((leaf / Tr::kTwigLeaves + 1) * Tr::kTwigLeaves, last);
        start_twig();
#pragma unroll 1
        for (; leaf < end; ++leaf) {
          correct_leaf(leaf);
          fold();
        }
        end_twig(end == last);
      }
      release(&smem_.work_empty[work_.slot]);
      work_.advance();
    }
  }

 private:
  // Note: read again where it is needed rather than kept: O of the twig takes the registers.
  SKIM_DEVICE DecodeItem read_item() const { return read_decode_item(smem_, ptx::shfl(work_.slot, 0)); }

  SKIM_DEVICE bool load_work() {
    ptx::mbarrier_wait_parity(&smem_.work_full[work_.slot], work_.phase);
    const DecodeItem item = read_item();
    for (int n = item.start.lo; n < item.start.hi; ++n) p_state_.advance();  // they have scores, and no P
    starts_branch_ = true;
    branch_ = {-kInf, 0.0f};
    return item.base.valid != 0;
  }

  SKIM_DEVICE void start_twig() {
    twig_ = {-kInf, 0.0f};
#pragma unroll
    for (int i = 0; i < kOut; ++i) o_[i] = 0.0f;
  }

  SKIM_DEVICE void correct_leaf(int leaf) {
    const DecodeItem item = read_item();
    const Span tiles = item.tiles_of(leaf);
#pragma unroll 1
    for (int n = tiles.hi - 1; n >= tiles.lo; --n) {
      correct({item.first_key - n * Tr::kTileN, item.base.len_k - n * Tr::kTileN});
    }
  }

  // What the softmax has to say next of this row.
  SKIM_DEVICE RowScale hear() {
    ptx::mbarrier_wait_parity(&smem_.told_full, told_phase_);
    told_phase_ ^= 1;
    const uint32_t first = ptx::ld_shared(&smem_.told[0][half_row(thread_)]);
    const uint32_t second = ptx::ld_shared(&smem_.told[1][half_row(thread_)]);
    release(&smem_.told_empty);
    return {__builtin_bit_cast(float, first), __builtin_bit_cast(float, second)};
  }

  // One tile, of which rows of the request see the keys `seen`, or fewer. Ends when O holds it.
  SKIM_DEVICE void correct(const Span& seen) {
    const float acc_scale = hear().max;
    const auto tile = values_.next(smem_);
    if (tile.kept) {
      if (seen.lo > 0 || seen.hi < Tr::kTileN) clear_unseen(tile.at, seen);
      if (ptx::warp_any(acc_scale != 1.0f)) rescale(acc_scale);
    }
    release_tmem(&smem_.p_full[p_state_.slot]);
    p_state_.advance();
    wait_tmem(&smem_.o_full, values_.o_phase());
  }

  SKIM_DEVICE void rescale(float acc_scale) {
#pragma unroll
    for (int column = 0; column < kOut; column += kChunk) {
      float o[kChunk];
      ptx::tcgen05_ld_halves<kChunk, kOut>(o, output_ + column);
      ptx::tcgen05_wait_ld<kChunk>(o);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) o[i] *= acc_scale;
      ptx::tcgen05_st_halves<kChunk, kOut>(output_ + column, o);
    }
    ptx::tcgen05_wait_st();
  }

  // Zeroes what no row of the request sees of V: see seen_in_tile. No product reads the tile before this warpgroup has
  // arrived at p_full.
  // Note: whatever was in the slot before has been seen full, since the products of all tiles before this one are done.
  SKIM_DEVICE void clear_unseen(const PipelineState<Tr::kStagesV>& at, const Span& seen) {
    ptx::mbarrier_wait_parity(&smem_.v_full[at.slot], at.phase);
#pragma unroll 1
    for (int panel = 0; panel < Storage::kPanelsV; ++panel) {
      uint8_t* begin = smem_.v[at.slot] + panel * Storage::kKvPanelBytes;
      for (int byte = thread_ * 16; byte < Storage::kKvPanelBytes; byte += kGroupThreads * 16) {
        const int key = byte / kPanelRowBytes;
        if (key < seen.lo || key >= seen.hi) ptx::st_shared_zero16(begin + byte);
      }
    }
    ptx::fence_proxy_async();
  }

  // Merges a leaf into those of the twig before it.
  // Note: where no row of the warp saw a key, nobody need have written O.
  SKIM_DEVICE void fold() {
    const RowScale leaf = hear();
    const bool counts = ptx::warp_any(leaf.sum != 0.0f);
    const Merge merge = merge_of(twig_, leaf);
    twig_ = merge.merged;
#pragma unroll
    for (int column = 0; column < kOut; column += kChunk) {
      float o[kChunk] = {};
      if (counts) {
        ptx::tcgen05_ld_halves<kChunk, kOut>(o, output_ + column);
        ptx::tcgen05_wait_ld<kChunk>(o);
      }
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        o_[column + i] = merge_column(merge, o_[column + i], o[i] * kSumUnit<typename Tr::Element>);
      }
    }
  }

  // Twigs are merged in the part's place in the workspace, of which each thread reads what it wrote. The result of a
  // request that is one part goes to the output.
  SKIM_DEVICE void end_twig(bool is_last) {
    const DecodeItem item = read_item();
    const Place at = place_of(item);
    if (at.valid(0)) {
      float* row =
          part_row<Tr>(at.batch, item.base.head, item.base.row0 / Tr::kGroupRows, item.part, half_row(thread_), p_);
      const Merge merge = merge_of(branch_, twig_);
      branch_ = merge.merged;
      if (!starts_branch_) merge_twig(merge, row + at.column);
      if (is_last && item.only != 0) {
        store_result(at);
      } else {
        store_part(row, at.column);
      }
    }
    starts_branch_ = false;
  }

  SKIM_DEVICE Place place_of(const DecodeItem& item) const {
    const WorkItem& base = item.base;
    const int packed = base.row0 + half_row(thread_), row = packed / p_.qheads_per_kv;
    const int head = base.head * p_.qheads_per_kv + packed % p_.qheads_per_kv;
    return {{row}, {head}, half_of(thread_) * kOut, base.batch, base.len_q, base.len_k, base.q_offset, {0.0f}};
  }

  SKIM_DEVICE void merge_twig(const Merge& merge, const float* before) {
#pragma unroll
    for (int i = 0; i < kOut; i += 2) {
      const ptx::Pair pair = ptx::ld_global_pair(before + i);
      o_[i] = merge_column(merge, pair.x, o_[i]);
      o_[i + 1] = merge_column(merge, pair.y, o_[i + 1]);
    }
  }

  SKIM_DEVICE void store_part(float* row, int column) const {
#pragma unroll
    for (int i = 0; i < kOut; i += 2) ptx::st_global_pair(row + column + i, {o_[i], o_[i + 1]});
    if (column == 0) ptx::st_global_pair(row + Tr::kHeadDimV, {branch_.max, branch_.sum});
  }

  SKIM_DEVICE void store_result(const Place& at) const {
    float inverse = inverse_of(branch_.sum, branch_.max, 1.0f, at.head_of(0), p_);
    if constexpr (kDescaled<typename Tr::Element>) inverse *= v_descale(p_, at.batch, at.head_of(0) / p_.qheads_per_kv);
    if (p_.lse != nullptr && at.column == 0) store_lse(branch_.sum, branch_.max, 1.0f, 0, at, p_);
    uint16_t* to = output_row(at, 0, p_) + at.column;
#pragma unroll
    for (int i = 0; i < kOut; i += 2) {
      if (at.column + i >= p_.head_dim_v) break;
      ptx::st_global(reinterpret_cast<uint32_t*>(to + i), pack_output<typename Tr::Out>(o_[i], o_[i + 1], inverse));
    }
  }

  const Params& p_;
  Storage& smem_;
  const int thread_;
  const uint32_t output_;  // tensor memory: O in this warp's lanes
  float o_[kOut];          // of the twig's leaves so far
  RowScale twig_, branch_;
  bool starts_branch_ = true;  // whether the next twig is the part's first
  PipelineState<kWorkSlots> work_;
  PipelineState<DecodeColumns<Tr>::kScoreSlots> p_state_;
  ValueTiles<Tr> values_;
  uint32_t told_phase_ = 0;
};

}  // namespace skimattn::sm100
