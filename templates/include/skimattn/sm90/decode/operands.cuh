// Where a decode CTA's products find K and V, and what its consumer warpgroup does about them meanwhile.
//
// 16-bit tiles are read in the slots that copies fill. 8-bit ones of groups of more than 16 rows (swapped_operands.cuh
// has the others) are converted by the consumer, since it has nothing else to do while a product runs: the values of a
// tile during Q.K of the next one, the keys of the next tile during P.V. One converted tile of each is enough for that.
// Two barriers a tile order it: before Q.K, all threads have converted the keys, and are done with the values before;
// after Q.K, all have converted the values, and are done with the keys.
#pragma once
#include <skimattn/sm90/decode/convert.cuh>
#include <skimattn/sm90/decode/storage.cuh>
#include <skimattn/sm90/descriptor.cuh>

namespace skimattn::sm90 {

constexpr int kWrittenBarrier = 1;  // 0 belongs to cta_sync

// The consumer's places in the rings of K and V.
template <class Tr>
class OperandRings {
 public:
  using Storage = DecodeStorage<Tr>;
  SKIM_DEVICE OperandRings(Storage& smem, int thread) : smem_(smem), thread_(thread) {}

  // One arrival per warp, once all its lanes are done with the buffer.
  SKIM_DEVICE void release(uint64_t* empty) const {
    ptx::warp_sync();
    if (thread_ % kWarpThreads == 0) ptx::mbarrier_arrive(empty);
  }
  // A tile of V that is not wanted after all.
  SKIM_DEVICE void drop_values() {
    await_v();
    release_v();
  }
  SKIM_DEVICE const uint8_t* k_slot() const { return smem_.k[k_.slot]; }
  SKIM_DEVICE const uint8_t* v_slot() const { return smem_.v[v_.slot]; }
  SKIM_DEVICE void await_k() const { ptx::mbarrier_wait_parity(&smem_.k_full[k_.slot], k_.phase); }
  SKIM_DEVICE void await_v() const { ptx::mbarrier_wait_parity(&smem_.v_full[v_.slot], v_.phase); }
  SKIM_DEVICE void release_k() {
    release(&smem_.k_empty[k_.slot]);
    k_.advance();
  }
  SKIM_DEVICE void release_v() {
    release(&smem_.v_empty[v_.slot]);
    v_.advance();
  }
  // All threads of the group have written their part of what products read next, and waited for those before.
  SKIM_DEVICE void written() const {
    ptx::fence_proxy_async();
    ptx::bar_sync(kWrittenBarrier, kGroupThreads);
  }

 protected:
  Storage& smem_;
  const int thread_;
  PipelineState<Tr::kStages> k_;   // of the next tile
  PipelineState<Tr::kStagesV> v_;  // of the tile that is pending
};

// What a tile goes through, in this order: its keys are waited for, scored and done with; its values likewise, where
// the tile is kept. `seen` are the keys of the pending tile that some row of the request sees.
template <class Tr, bool kConverts = DecodePanels<Tr>::kConvertsKv>
class DecodeOperands : public OperandRings<Tr> {
 public:
  using Storage = DecodeStorage<Tr>;
  using OperandRings<Tr>::OperandRings;

  SKIM_DEVICE void begin_item(int) {}
  SKIM_DEVICE uint64_t keys() {
    this->await_k();
    return advance(k_major(smem_.k[0]), k_.slot * Storage::kKBytes);
  }
  SKIM_DEVICE void while_scoring(bool, const Span&) {}
  SKIM_DEVICE void scored() { this->release_k(); }
  SKIM_DEVICE void before_last_values(const Span&) {}
  SKIM_DEVICE uint64_t values(const Span& seen) {
    this->await_v();
    clear_unseen(seen);
    return advance(mn_major(smem_.v[0], Storage::kKvPanelBytes), v_.slot * Storage::kVBytes);
  }
  SKIM_DEVICE void next_keys() {}
  SKIM_DEVICE void multiplied() { this->release_v(); }

 private:
  using OperandRings<Tr>::smem_, OperandRings<Tr>::thread_, OperandRings<Tr>::k_, OperandRings<Tr>::v_;

  // Zeroes what no row of the request sees of V, if this tile holds any: see seen_in_tile.
  SKIM_DEVICE void clear_unseen(const Span& seen) {
    if (seen.lo <= 0 && seen.hi >= Tr::kTileN) return;
    clear_keys(0, seen.lo);
    clear_keys(seen.hi, Tr::kTileN);
    this->written();
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
};

template <class Tr>
class DecodeOperands<Tr, true> : public OperandRings<Tr> {
 public:
  using Storage = DecodeStorage<Tr>;
  using OperandRings<Tr>::OperandRings;

  // `key_tiles`: how many the producer loads for the item, whatever they serve.
  SKIM_DEVICE void begin_item(int key_tiles) {
    keys_left_ = key_tiles;
    next_keys();
  }
  SKIM_DEVICE uint64_t keys() {
    this->written();
    return k_major(smem_.converted_k);
  }
  SKIM_DEVICE void while_scoring(bool is_pending, const Span& seen) {
    if (is_pending) convert_values(seen);
  }
  SKIM_DEVICE void scored() { this->written(); }
  // Where no tile is scored any more before the pending one's values are wanted.
  SKIM_DEVICE void before_last_values(const Span& seen) {
    this->written();
    convert_values(seen);
    this->written();
  }
  SKIM_DEVICE uint64_t values(const Span&) { return mn_major(smem_.converted_v, Storage::kKvPanelBytes); }
  // Converts the item's next tile of keys, if there is one.
  SKIM_DEVICE void next_keys() {
    if (keys_left_ == 0) return;
    --keys_left_;
    this->await_k();
    Converter<Tr::kHeadDim, Tr::kTileN>(thread_).template convert<false>(smem_.k[k_.slot], smem_.converted_k, {});
    this->release_k();
  }
  SKIM_DEVICE void multiplied() {}
  // Q, where it is no operand from registers. Note: keys() has the barrier that its first product needs.
  SKIM_DEVICE void convert_q(const uint8_t* from) const {
    Converter<Tr::kHeadDim, Tr::kGroupRows>(thread_).template convert<false>(from, smem_.converted_q, {});
  }

 private:
  using OperandRings<Tr>::smem_, OperandRings<Tr>::thread_, OperandRings<Tr>::k_, OperandRings<Tr>::v_;

  // Note: as many at a time as registers allow; skip kernels, and those with half of theirs full of O, have few.
  static constexpr int kBatch = Tr::kSkip == Skip::kDense && Tr::kHeadDimV <= 128 ? 2 : 1;
  template <int kColumns, int kRows>
  using Converter = TileConverter<typename Tr::Element, kColumns, kRows, kBatch>;

  // With zeros where no row of the request sees them: see seen_in_tile.
  SKIM_DEVICE void convert_values(const Span& seen) {
    this->await_v();
    const Converter<Tr::kHeadDimV, Tr::kTileN> converter(thread_);
    if (seen.lo <= 0 && seen.hi >= Tr::kTileN) {
      converter.template convert<false>(smem_.v[v_.slot], smem_.converted_v, seen);
    } else {
      converter.template convert<true>(smem_.v[v_.slot], smem_.converted_v, seen);
    }
    this->release_v();
  }

  int keys_left_ = 0;  // key tiles of the item that are still to be converted
};

}  // namespace skimattn::sm90
