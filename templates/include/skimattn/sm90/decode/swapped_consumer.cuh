// An item of a decode CTA's consumer warpgroup, where 8-bit keys and values meet a group of at most 16 packed rows.
//
// The wide way (consumer.cuh) computes 64 rows whether they exist or not, and writes all keys and values anew to shared
// memory. Here they are the A operand, in registers, and only Q, and P of each tile, are written. Which of the two is
// taken follows from the rows of the group alone. The order of work is the same: the values of a tile are made ready
// during Q.K of the next one, the keys of the tile after that during P.V.
#pragma once
#include <skimattn/core/score_mod.cuh>
#include <skimattn/sm90/decode/epilogue.cuh>
#include <skimattn/sm90/decode/item.cuh>
#include <skimattn/sm90/decode/place.cuh>
#include <skimattn/sm90/decode/query_tile.cuh>
#include <skimattn/sm90/decode/votes.cuh>

namespace skimattn::sm90 {

template <class Tr>
class SwappedConsumer {
 public:
  using Storage = DecodeStorage<Tr>;
  using Rings = OperandRings<Tr>;
  using Tiles = SwappedTiles<Tr>;
  using Keys = KeyFragments<Tr>;
  using Values = ValueFragments<Tr>;
  using Output = SwappedOutput<Tr::kHeadDimV>;
  using Place = PackedPlace<SwappedScores>;
  using Wgmma = ptx::Wgmma<ElementFp16, kSwappedRows>;
  static constexpr bool kSkips = Tr::kSkip != Skip::kDense;
  static constexpr int kRows = SwappedRows::kRows, kScores = 8;  // a thread's, of a product
  static constexpr int kOut = Tr::kHeadDimV / 8;
  static_assert(sizeof(Tiles) <= sizeof(Storage::converted_k) && sizeof(SwappedSums) <= sizeof(Storage::converted_v));
  // P is so many powers of two larger than its base says: 2^15 is the largest fp16, and what would be too small for
  // fp16 is below 2^-39 of the largest P.
  static constexpr float kGainP = 15.0f, kUnitP = 1.0f / 32768.0f;

  SKIM_DEVICE SwappedConsumer(const Params& p, Storage& smem, int thread, Rings& rings, DecodeVotes<Tr>& votes,
                              int work_slot)
      : p_(p),
        smem_(smem),
        thread_(thread),
        work_slot_(work_slot),
        rings_(rings),
        votes_(votes),
        tiles_(*reinterpret_cast<Tiles*>(smem.converted_k)),
        exchange_(*reinterpret_cast<SwappedSums*>(smem.converted_v), thread),
        keys_(thread),
        values_(thread) {}

  // Its leaves [lo, hi). `q_phase` is that of Q, which is handed back at once if `frees_q`.
  SKIM_DEVICE void run_item(const DecodeItem& item, int lo, int hi, uint32_t q_phase, bool frees_q) {
    begin_item(item, q_phase, frees_q);
    for (int leaf = lo; leaf < hi; ++leaf) {
      compute_leaf(leaf);
      end_leaf(leaf, leaf == hi - 1);
    }
  }

 private:
  SKIM_DEVICE static float larger(float a, float b) { return ptx::max_nan(a, b); }
  SKIM_DEVICE static float sum(float a, float b) { return a + b; }
  SKIM_DEVICE float scale_log2() const { return unit_.scale_log2(p_); }

  SKIM_DEVICE void begin_item(const DecodeItem& item, uint32_t q_phase, bool frees_q) {
    unit_.load(p_, item.base.batch, item.base.head);
    // Note: a product's first key counts the warp's, since a custom mask's bits are taken from 32 keys at a time.
    at_ = packed_place_from<Tr, SwappedScores>(item, SwappedRows::first_row(thread_), thread_ % kWarpThreads / 4, p_);
    unit_.scale_slopes(at_);
    load_limits<Tr>(limit_, at_, p_);
    epilogue_.start();
    ptx::mbarrier_wait_parity(&smem_.q_full, q_phase);
    QueryTile<Tr>::write(smem_, tiles_.q, tiles_.q_unit, thread_);
    if (frees_q) rings_.release(&smem_.q_empty);
    rings_.written();
    if constexpr (QueryTile<Tr>::kScales) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        q_unit_[r] = ptx::ld_shared_float(tiles_.q_unit + SwappedRows::first_row(thread_) + SwappedRows::row_offset(r));
      }
    }
    keys_.clear();
    values_.clear();
    keys_left_ = uniform(item.key_tiles());
    next_keys();
    find_start_maxima(uniform(item.start));
  }

  // What every leaf's maxima start from.
  SKIM_DEVICE void find_start_maxima(const Span& tiles) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) start_max_[r] = -kInf;
    if constexpr (kSkips) {
      for (int n = tiles.hi - 1; n >= tiles.lo; --n) {
        float s[Keys::kParts][kScores], maxima[kRows];
        compute_scores<true>(s, n);
        next_keys();
        thread_maximum(s, maxima);
        exchange_.publish(maxima, larger);
        exchange_.receive(maxima, larger);
#pragma unroll
        for (int r = 0; r < kRows; ++r) start_max_[r] = ptx::max_nan(start_max_[r], maxima[r]);
      }
    }
  }

  SKIM_DEVICE void compute_leaf(int leaf) {
    const DecodeItem item = read_decode_item(smem_, work_slot_);
    const Span tiles = uniform(item.tiles_of(leaf));
    const int clean_first = uniform(item.range.clean_first), clean_last = uniform(item.range.clean_last);
#pragma unroll
    for (int part = 0; part < Values::kParts; ++part) {
#pragma unroll
      for (int i = 0; i < kScores; ++i) o_[part][i] = 0.0f;
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      max_[r] = start_max_[r];
      sum_[r] = 0.0f;
    }
    pending_ = false;
    for (int n = tiles.hi - 1; n >= tiles.lo; --n) {
      if (n >= clean_first && n < clean_last) {
        step<false>(n);
      } else {
        step<true>(n);
      }
    }
    if (pending_) {
      load_values();
      begin_values();
      ptx::wgmma_wait<0>();
    }
  }

  // Merges what the leaf has found. Note: all warps' products are done once sums have been exchanged.
  SKIM_DEVICE void end_leaf(int leaf, bool is_last) {
    float o[kOut], sums[kRows];
    const auto whole_sum = [&](int r) { return sums[r] * kUnitP; };
    exchange_.publish(sum_, sum);
    exchange_.receive(sums, sum);
#pragma unroll
    for (int part = 0; part < Values::kParts; ++part) {
#pragma unroll
      for (int i = 0; i < kScores; ++i) o[Output::index(part, i)] = o_[part][i] * kUnitP;
    }
    if (epilogue_.add(o, max_, whole_sum, scale_log2(), leaf, is_last, smem_, thread_)) {
      const DecodeItem item = read_decode_item(smem_, work_slot_);
      const int row = SwappedRows::first_row(thread_), column = Output::first_column(thread_);
      epilogue_.end_twig(o, is_last, item, packed_place_from<Tr, Output>(item, row, column, p_), p_, thread_);
    }
  }

  // Raw scores of tile n, masked; meanwhile the values of the tile that is pending are made ready.
  template <bool kMasked>
  SKIM_DEVICE void compute_scores(float (&s)[Keys::kParts][kScores], int n) {
    ptx::wgmma_fence();
#pragma unroll
    for (int part = 0; part < Keys::kParts; ++part) {
#pragma unroll
      for (int i = 0; i < Keys::kSteps; ++i) {
        const uint64_t q = advance(k_major(tiles_.q), i / 4 * Tiles::kPanelBytes + i % 4 * kStepBytes);
        Wgmma::rs_k_major(s[part], keys_.of(part, i), q, i > 0);
      }
    }
    ptx::wgmma_commit();
    if (pending_) load_values();
    ptx::wgmma_wait<0>();
#pragma unroll
    for (int part = 0; part < Keys::kParts; ++part) {
      const int key0 = n * Tr::kTileN + part * 64 + thread_ / kWarpThreads * 16;
      if constexpr (QueryTile<Tr>::kScales) {
#pragma unroll
        for (int i = 0; i < kScores; ++i) s[part][i] *= q_unit_[SwappedScores::row(i)];
      }
      apply_score_mod<Tr>(s[part], key0, at_, unit_.score_scale(p_));
      if constexpr (kMasked) mask_scores<Tr>(s[part], key0, at_, p_);
    }
  }

  template <bool kMasked>
  SKIM_DEVICE void step(int n) {
    float s[Keys::kParts][kScores], maxima[kRows];
    compute_scores<kMasked>(s, n);
    thread_maximum(s, maxima);
    bool keeps = true;
    if constexpr (kSkips) {
      keeps = warp_keeps(maxima, max_, at_, scale_log2(), limit_);
      votes_.cast(keeps, smem_, thread_);
    }
    // Note: the product's wait stands beside it, or ptxas would not know where it ends.
    if (pending_) {
      begin_values();
      if (keeps) exchange_.publish(maxima, larger);
      next_keys();
      ptx::wgmma_wait<0>();
    } else {
      if (keeps) exchange_.publish(maxima, larger);
      next_keys();
    }
    pending_ = !kSkips || votes_.resolve(keeps, rings_, smem_);
    if (!pending_) return;
    pending_tile_ = n;
    if (!keeps) exchange_.publish(maxima, larger);
    exchange_.receive(maxima, larger);
    exponentiate(s, maxima);
  }

  SKIM_DEVICE static void thread_maximum(const float (&s)[Keys::kParts][kScores], float (&maxima)[kRows]) {
#pragma unroll
    for (int part = 0; part < Keys::kParts; ++part) {
#pragma unroll
      for (int i = 0; i < kScores; ++i) {
        float& max = maxima[SwappedScores::row(i)];
        max = part == 0 && SwappedScores::column(i) == 0 ? s[part][i] : ptx::max_nan(max, s[part][i]);
      }
    }
  }

  // P of a tile, whose row maxima are `maxima`, to shared memory; what is older is brought to the new maxima.
  // Note: all warps have waited for the product before, which read what is overwritten: maxima have been exchanged
  // since.
  SKIM_DEVICE void exponentiate(const float (&s)[Keys::kParts][kScores], const float (&maxima)[kRows]) {
    float base[kRows], acc_scale[kRows], added[kRows] = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float old_max = max_[r];
      max_[r] = ptx::max_nan(old_max, maxima[r]);
      // A row that has seen no key keeps max = -inf; measured from 0 its exponentials come out as 0, not NaN.
      base[r] = max_[r] == -kInf ? 0.0f : max_[r] * scale_log2();
      acc_scale[r] = ptx::ex2(fmaf(old_max, scale_log2(), -base[r]));
      base[r] -= kGainP;
    }
#pragma unroll
    for (int part = 0; part < Keys::kParts; ++part) {
      float e[kScores];
#pragma unroll
      for (int i = 0; i < kScores; ++i) {
        e[i] = ptx::ex2(fmaf(s[part][i], scale_log2(), -base[SwappedScores::row(i)]));
        added[SwappedScores::row(i)] += e[i];
      }
      store_probabilities(e, tiles_.p + part * Tiles::kPanelBytes);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) sum_[r] = fmaf(sum_[r], acc_scale[r], added[r]);
#pragma unroll
    for (int part = 0; part < Values::kParts; ++part) {
#pragma unroll
      for (int i = 0; i < kScores; ++i) o_[part][i] *= acc_scale[SwappedScores::row(i)];
    }
  }

  // Of 64 keys: two matrices of 8 keys to each 8 rows, of which every lane stores a row's part.
  SKIM_DEVICE void store_probabilities(const float (&e)[kScores], uint8_t* panel) const {
    const int lane = thread_ % kWarpThreads, row = lane / 16 * 8 + lane % 8;
    const int chunk = thread_ / kWarpThreads * 2 + lane / 8 % 2;
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = ptx::pack(ElementFp16{}, e[2 * i], e[2 * i + 1]);
    ptx::stmatrix_trans(panel + swizzled_byte(row, chunk * 16), words[0], words[1], words[2], words[3]);
  }

  // Begins O^T += V^T.P^T of the tile that is pending.
  SKIM_DEVICE void begin_values() {
    rings_.written();
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < Values::kSteps; ++i) {
      const uint64_t p = advance(k_major(tiles_.p), i / 4 * Tiles::kPanelBytes + i % 4 * kStepBytes);
#pragma unroll
      for (int part = 0; part < Values::kParts; ++part) Wgmma::rs_k_major(o_[part], values_.of(part, i), p, true);
    }
    ptx::wgmma_commit();
  }

  // Takes the values of the tile that is pending, with zeros where no row of the request sees them.
  SKIM_DEVICE void load_values() {
    const Span seen = seen_of_tile<Tr>(smem_, work_slot_, pending_tile_, at_.len_k);
    rings_.await_v();
    if (seen.lo <= 0 && seen.hi >= Tr::kTileN) {
      values_.template load<false>(rings_.v_slot(), seen);
    } else {
      values_.template load<true>(rings_.v_slot(), seen);
    }
    rings_.release_v();
  }

  // Takes the item's next tile of keys, if there is one.
  SKIM_DEVICE void next_keys() {
    if (keys_left_ == 0) return;
    --keys_left_;
    rings_.await_k();
    keys_.load(rings_.k_slot());
    rings_.release_k();
  }

  const Params& p_;
  Storage& smem_;
  const int thread_, work_slot_;
  Rings& rings_;
  DecodeVotes<Tr>& votes_;
  Tiles& tiles_;
  RowExchange exchange_;
  Place at_;
  ScoreUnit<Tr> unit_;
  float q_unit_[kRows];  // what one unit of a row of Q^T counts
  float limit_[kRows];
  float start_max_[kRows];
  float max_[kRows];  // of the leaf, raw
  float sum_[kRows];  // of this thread's keys only
  float o_[Values::kParts][kScores];
  Keys keys_;
  Values values_;
  DecodeEpilogue<Tr, Output, kOut> epilogue_;
  bool pending_ = false;  // whether P.V of `pending_tile_` is still to be done
  int pending_tile_ = 0;
  int keys_left_;  // key tiles of the item that are still to be taken
};

}  // namespace skimattn::sm90
