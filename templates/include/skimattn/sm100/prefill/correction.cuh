// The correction warpgroup: keeps the outputs in tensor memory in step with the softmax, one row a thread, for all
// groups in turn. Before a tile's product it multiplies the rows whose base has moved, and zeroes what no
// row of the request sees of V; after the last product it stores.
#pragma once
#include <skimattn/sm100/prefill/epilogue.cuh>
#include <skimattn/sm100/prefill/storage.cuh>

namespace skimattn::sm100 {

template <class Tr>
class Correction {
 public:
  using Storage = SharedStorage<Tr>;

  SKIM_DEVICE Correction(const Params& p, Storage& smem)
      : p_(p),
        smem_(smem),
        thread_(ptx::thread_index() % kGroupThreads),
        tmem_(ptx::ld_shared(&smem.tmem_address) + tmem_lanes(thread_ / kWarpThreads)) {}

  SKIM_DEVICE void run() {
    for (WorkItem item = receive(); item.valid; item = receive()) {
      const TileRange range = cta_range<Tr>(item, p_);
      const int tiles = range.last - range.first;
#pragma unroll 1
      for (int i = 0; i < tiles; ++i) {
        const int n = visited_tile<Tr::kSinkFirst>(range.first, range.last, i);
        correct(seen_in_tile<Tr>(item.len_q, item.len_k, n, p_));
      }
#pragma unroll 1
      for (int group = 0; group < Tr::kConsumers; ++group) epilogue(item, group, tiles > 0 || !Tr::kSeparateO);
      item_phase_ ^= 1;
      if (tiles > 0 || !Tr::kSeparateO) output_phase_ ^= 1;
    }
    Epilogue<Tr>::drain(thread_);
  }

 private:
  SKIM_DEVICE WorkItem receive() {
    ptx::mbarrier_wait_parity(&smem_.work_full[work_.slot], work_.phase);
    const WorkItem item = read_work(smem_, work_.slot);
    release(&smem_.work_empty[work_.slot]);
    work_.advance();
    return item;
  }

  SKIM_DEVICE uint32_t output(int group) const { return tmem_ + TmemColumns<Tr>::o(group); }

  // One tile, of which rows of the request see the keys `seen`, or fewer.
  // Note: acc_scale_full comes after s_full of the same tile, and that after the product of the tile before.
  SKIM_DEVICE void correct(const Span& seen) {
#pragma unroll 1
    for (int group = 0; group < Tr::kConsumers; ++group) {
      wait_tmem(&smem_.acc_scale_full[group], tile_phase_);
      const float acc_scale = __builtin_bit_cast(float, ptx::ld_shared(&smem_.acc_scale[group][thread_]));
      if (group == 0 && (seen.lo > 0 || seen.hi < Tr::kTileN)) clear_unseen(seen);
      if (ptx::warp_any(acc_scale != 1.0f)) rescale(output(group), acc_scale);
      release_tmem(&smem_.p_full[group]);
    }
    tile_phase_ ^= 1;
    v_.advance();
  }

  SKIM_DEVICE void rescale(uint32_t address, float acc_scale) {
    constexpr int kChunk = 16;  // two are in flight: larger ones would need more registers
#pragma unroll
    for (int column = 0; column < Tr::kHeadDimV; column += kChunk) {
      float o[kChunk];
      ptx::tcgen05_ld<kChunk>(o, address + column);
      ptx::tcgen05_wait_ld<kChunk>(o);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) o[i] *= acc_scale;
      ptx::tcgen05_st<kChunk>(address + column, o);
    }
    ptx::tcgen05_wait_st();
  }

  // Zeroes what no row of the request sees of V: see seen_in_tile. No product reads the tile before this warpgroup has
  // arrived at p_full.
  // Note: the slot's V before this one has been seen full, or its phase would be taken for this one's: the products of
  // a tile are issued once all V but that of the tile before it are settled, and that one too where it has the same
  // slot.
  SKIM_DEVICE void clear_unseen(const Span& seen) {
    ptx::mbarrier_wait_parity(&smem_.v_full[v_.slot], v_.phase);
#pragma unroll 1
    for (int panel = 0; panel < Storage::kPanelsV; ++panel) {
      uint8_t* begin = smem_.v[v_.slot] + panel * Storage::kKvPanelBytes;
      for (int at = thread_ * 16; at < Storage::kKvPanelBytes; at += kGroupThreads * 16) {
        const int key = at / kPanelRowBytes;
        if (key < seen.lo || key >= seen.hi) ptx::st_shared_zero16(begin + at);
      }
    }
    ptx::fence_proxy_async();
  }

  // `announced`: o_full tells when the group's output, which may be nothing, can be taken and its place be written.
  SKIM_DEVICE void epilogue(const WorkItem& item, int group, bool announced) {
    ptx::mbarrier_wait_parity(&smem_.inverse_full[group], item_phase_);
    const float inverse = __builtin_bit_cast(float, ptx::ld_shared(&smem_.inverse[group][thread_]));
    release(&smem_.inverse_empty[group]);
    if (announced) wait_tmem(&smem_.o_full[group], output_phase_);
    Epilogue<Tr>::store(output(group), inverse, item, p_, smem_, group, thread_);
  }

  const Params& p_;
  Storage& smem_;
  const int thread_;
  const uint32_t tmem_;  // tensor memory: this warp's lanes
  PipelineState<kWorkSlots> work_;
  PipelineState<Tr::kStagesV> v_;
  uint32_t tile_phase_ = 0, item_phase_ = 0, output_phase_ = 0;
};

}  // namespace skimattn::sm100
