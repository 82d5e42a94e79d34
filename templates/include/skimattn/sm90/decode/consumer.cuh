// The consumer warpgroup of a decode CTA: 64 packed rows of one kv head against the key tiles of a part.
//
// A tile's vote is cast before P.V of the tile before it is waited for, so what V's loader has to fetch is known one
// tile early. Products are never in flight together: decode waits for memory, and the other CTA of the SM computes
// meanwhile. Over 8-bit caches, groups of few rows are multiplied the other way round: see swapped_consumer.cuh.
#pragma once
#include <skimattn/core/score_mod.cuh>
#include <skimattn/sm90/decode/epilogue.cuh>
#include <skimattn/sm90/decode/item.cuh>
#include <skimattn/sm90/decode/operands.cuh>
#include <skimattn/sm90/decode/place.cuh>
#include <skimattn/sm90/decode/swapped_consumer.cuh>
#include <skimattn/sm90/decode/votes.cuh>

namespace skimattn::sm90 {

template <class Tr>
class WideConsumer {
 public:
  using Storage = DecodeStorage<Tr>;
  using Place = PackedPlace<Layout>;
  static constexpr bool kSkips = Tr::kSkip != Skip::kDense;
  static constexpr int kScores = Tr::kTileN / 2;  // floats a thread holds of a 64-row tile
  static constexpr int kOut = Tr::kHeadDimV / 2;
  static constexpr int kStepsQ = Tr::kHeadDim / 16;

  SKIM_DEVICE WideConsumer(const Params& p, Storage& smem)
      : p_(p), smem_(smem), thread_(ptx::thread_index()), operands_(smem, thread_) {}

 protected:
  SKIM_DEVICE void run_item(const DecodeItem& item) {
    begin_item(item);
    for (int leaf = lo_; leaf < hi_; ++leaf) {
      compute_leaf(leaf);
      end_leaf(leaf, leaf == hi_ - 1);
    }
  }

  // Note: counted rather than kept, which would take a register.
  SKIM_DEVICE int work_slot() const { return items_ % kWorkSlots; }
  // Where leaves are merged, that happens in Q's place.
  SKIM_DEVICE bool frees_q_early() const { return Storage::kReadsQAtOnce && hi_ - lo_ == 1; }

 private:
  SKIM_DEVICE void begin_item(const DecodeItem& item) {
    unit_.load(p_, item.base.batch, item.base.head);
    at_ = place_of(item);
    load_limits<Tr>(limit_, at_, p_);
    epilogue_.start();
    ptx::mbarrier_wait_parity(&smem_.q_full, items_ & 1);
    if constexpr (Tr::kQInRegisters) {
      load_q();
    } else if constexpr (Storage::kReadsQAtOnce) {
      operands_.convert_q(smem_.q());
    }
    if (frees_q_early()) operands_.release(&smem_.q_empty);
    operands_.begin_item(uniform(item.key_tiles()));
    find_start_maxima(uniform(item.start));
  }

  SKIM_DEVICE Place place_of(const DecodeItem& item) const {
    Place at = packed_place<Tr>(item, thread_, p_);
    unit_.scale_slopes(at);
    return at;
  }
  SKIM_DEVICE float scale_log2() const { return unit_.scale_log2(p_); }

  // What every leaf's maxima start from.
  SKIM_DEVICE void find_start_maxima(const Span& tiles) {
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) start_max_[r] = -kInf;
    if constexpr (kSkips) {
      for (int n = tiles.hi - 1; n >= tiles.lo; --n) {
        float s[kScores], thread_max[kThreadRows];
        compute_scores<true>(s, n);
        operands_.next_keys();
        thread_maximum(s, thread_max);
#pragma unroll
        for (int r = 0; r < kThreadRows; ++r) start_max_[r] = ptx::max_nan(start_max_[r], quad_max(thread_max[r]));
      }
    }
  }

  // Note: read again for every leaf rather than kept, since the main loop has no register to spare.
  SKIM_DEVICE void compute_leaf(int leaf) {
    const DecodeItem item = read_decode_item(smem_, work_slot());
    const Span tiles = {uniform(item.tiles_of(leaf).lo), uniform(item.tiles_of(leaf).hi)};
    const int clean_first = uniform(item.range.clean_first), clean_last = uniform(item.range.clean_last);
#pragma unroll
    for (int i = 0; i < kOut; ++i) o_[i] = 0.0f;
    // Note: read by no product before they are computed. Left undefined, ptxas of CUDA 12.8 serializes the products.
#pragma unroll
    for (int i = 0; i < Tr::kTileN / 16; ++i) {
#pragma unroll
      for (int word = 0; word < 4; ++word) probabilities_[i][word] = 0;
    }
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
    if (pending_) {
      operands_.before_last_values(seen_of_pending());
      multiply_values<false>();
    }
    pending_ = false;
  }

  SKIM_DEVICE void end_leaf(int leaf, bool is_last) {
    const auto whole_sum = [&](int r) { return quad_sum(rows_.sum[r]); };
    if (epilogue_.add(o_, rows_.max, whole_sum, scale_log2(), leaf, is_last, smem_, thread_)) {
      // Note: read again rather than kept, since the main loop has no register to spare.
      const DecodeItem item = read_decode_item(smem_, work_slot());
      epilogue_.end_twig(o_, is_last, item, place_of(item), p_, thread_);
    }
  }

  // Raw scores of tile n, masked.
  template <bool kMasked>
  SKIM_DEVICE void compute_scores(float (&s)[kScores], int n) {
    using Wgmma = ptx::Wgmma<typename Tr::Element, Tr::kTileN>;
    const uint64_t q = k_major(query_tile()), k = operands_.keys();
    ptx::wgmma_fence();
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
    operands_.while_scoring(pending_, seen_of_pending());
    ptx::wgmma_wait<0>();
    operands_.scored();
    apply_score_mod<Tr>(s, n * Tr::kTileN, at_, unit_.score_scale(p_));
    if constexpr (kMasked) mask_scores<Tr>(s, n * Tr::kTileN, at_, p_);
  }

  template <bool kMasked>
  SKIM_DEVICE void step(int n) {
    float s[kScores], thread_max[kThreadRows];
    compute_scores<kMasked>(s, n);
    thread_maximum(s, thread_max);
    bool keeps = true;
    if constexpr (kSkips) {
      keeps = warp_keeps(thread_max, rows_.max, at_, scale_log2(), limit_);
      votes_.cast(keeps, smem_, thread_);
    }
    if (pending_) {
      multiply_values<true>();
    } else {
      operands_.next_keys();
    }
    pending_ = !kSkips || votes_.resolve(keeps, operands_, smem_);
    if (!pending_) return;
    pending_tile_ = n;
    const RowMaxUpdate update = update_row_max(thread_max, rows_, scale_log2());
    exp_and_pack<typename Tr::Element>(s, Ahead<0>{}, update, scale_log2(), rows_, probabilities_, o_);
  }

  // O += P.V of the tile that is pending, while the next keys are made ready, if kScored: if those before were scored.
  template <bool kScored>
  SKIM_DEVICE void multiply_values() {
    const uint64_t v = operands_.values(seen_of_pending());
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < Tr::kTileN / 16; ++i) {
      ptx::Wgmma<typename Tr::Element, Tr::kHeadDimV>::rs(o_, probabilities_[i], advance(v, i * 16 * kPanelRowBytes));
    }
    ptx::wgmma_commit();
    if constexpr (kScored) operands_.next_keys();
    ptx::wgmma_wait<0>();
    operands_.multiplied();
  }
  SKIM_DEVICE Span seen_of_pending() const { return seen_of_tile<Tr>(smem_, work_slot(), pending_tile_, at_.len_k); }

  SKIM_DEVICE const uint8_t* query_tile() const {
    if constexpr (Storage::Panels::kConvertsQ && !Tr::kQInRegisters) {
      return smem_.converted_q;
    } else {
      return smem_.q();
    }
  }
  // Q as A operands.
  SKIM_DEVICE void load_q() {
    // Note: opaque where Q is converted, or places in it would be kept in registers from item to item.
    const int thread = Storage::Panels::kConvertsQ ? ptx::opaque(thread_) : thread_;
    const int lane = thread % kWarpThreads, row = thread / kWarpThreads * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < kStepsQ; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if constexpr (Storage::Panels::kConvertsQ) {
          // Two columns of this thread's are half of a word, whose other half is a neighbour's.
          const uint8_t* panel = smem_.q() + i / 8 * Storage::kQPanelBytes;
          const uint8_t* from = panel + swizzled_offset(row, i % 8 * 8) + half * 8 + lane % 4 / 2 * 4;
          const int shift = lane % 2 * 16;
          q_[i][2 * half] = ptx::widen(typename Tr::Element{}, ptx::ld_shared(from) >> shift);
          q_[i][2 * half + 1] = ptx::widen(typename Tr::Element{}, ptx::ld_shared(from + 8 * kPanelRowBytes) >> shift);
        } else {
          const uint8_t* panel = smem_.q() + i / 4 * Storage::kQPanelBytes;
          const uint8_t* from = panel + swizzled_offset(row, i % 4 * 16 + half * 8) + lane % 4 * 4;
          q_[i][2 * half] = ptx::ld_shared(from);
          q_[i][2 * half + 1] = ptx::ld_shared(from + 8 * kPanelRowBytes);
        }
      }
    }
  }

  Place at_;
  ScoreUnit<Tr> unit_;
  float limit_[kThreadRows];
  float start_max_[kThreadRows];
  float o_[kOut];
  uint32_t q_[Tr::kQInRegisters ? kStepsQ : 1][4];
  uint32_t probabilities_[Tr::kTileN / 16][4];
  RowState rows_;  // of the leaf
  DecodeEpilogue<Tr> epilogue_;
  bool pending_ = false;  // whether P.V of `pending_tile_` is still to be done
  int pending_tile_ = 0;

 protected:
  const Params& p_;
  Storage& smem_;
  const int thread_;
  int lo_, hi_;  // leaves of the part
  DecodeVotes<Tr> votes_;
  DecodeOperands<Tr> operands_;
  uint32_t items_ = 0;  // that have been computed
};

// All items that come, each in one of two ways.
template <class Tr>
class DecodeConsumer : WideConsumer<Tr> {
 public:
  using Wide = WideConsumer<Tr>;
  using Storage = DecodeStorage<Tr>;
  using Wide::Wide;

  SKIM_DEVICE void run() {
    while (load_work()) {
    }
  }

 private:
  using Wide::p_, Wide::smem_, Wide::thread_, Wide::operands_, Wide::votes_, Wide::items_, Wide::lo_, Wide::hi_;
  using Wide::work_slot, Wide::frees_q_early;

  // Whether there was an item.
  SKIM_DEVICE bool load_work() {
    ptx::mbarrier_wait_parity(&smem_.work_full[work_slot()], items_ / kWorkSlots & 1);
    const DecodeItem item = read_decode_item(smem_, work_slot());
    if (!uniform(item.base.valid)) return false;
    lo_ = uniform(item.lo);
    hi_ = uniform(item.hi);
    if (!run_swapped(item)) this->run_item(item);
    finish_work();
    return true;
  }

  // Whether that was the way.
  SKIM_DEVICE bool run_swapped(const DecodeItem& item) {
    if constexpr (!Storage::Panels::kConvertsKv) {
      return false;
    } else {
      if (uniform(item.packed_rows(p_) - item.base.row0) > kSwappedRows) return false;
      // Note: opaque, or what follows from it would be kept in registers while other items are computed.
      SwappedConsumer<Tr> swapped(p_, smem_, ptx::opaque(thread_), operands_, votes_, work_slot());
      swapped.run_item(item, lo_, hi_, items_ & 1, frees_q_early());
      return true;
    }
  }

  SKIM_DEVICE void finish_work() {
    if (!frees_q_early()) {
      ptx::fence_proxy_async();  // what was merged is overwritten by the next Q
      operands_.release(&smem_.q_empty);
    }
    operands_.release(&smem_.work_empty[work_slot()]);
    ++items_;
  }
};

}  // namespace skimattn::sm90
