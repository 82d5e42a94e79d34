// Normalises one group's output and stores it: whole 128-row tiles through shared memory and TMA, the last rows of a
// request directly, so that nothing of a neighbour is touched. The correction warpgroup calls it, one row a thread.
#pragma once
#include <skimattn/core/output.cuh>
#include <skimattn/sm100/descriptor.cuh>
#include <skimattn/sm100/prefill/storage.cuh>

namespace skimattn::sm100 {

template <class Tr>
struct Epilogue {
  using Storage = SharedStorage<Tr>;
  static constexpr int kChunk = 16;   // columns at a time
  static constexpr int kBarrier = 1;  // named barrier of the correction warpgroup; 0 belongs to cta_sync

  // `address` is the first column of O in this warp's lanes; `inverse` what the row is multiplied with.
  SKIM_DEVICE static void store(uint32_t address, float inverse, const WorkItem& item, const Params& p, Storage& smem,
                                int group, int thread) {
    const bool whole = item.row0 + (group + 1) * Tr::kGroupRows <= item.len_q;
    if (whole) {
      store_tile(address, inverse, item, p, smem, group, thread);
    } else {
      store_row(address, inverse, item, p, item.row0 + group * Tr::kGroupRows + thread);
    }
    if constexpr (!Tr::kSeparateO) {
      if (!whole) ptx::bar_sync(kBarrier, kGroupThreads);  // some may still wait for the Q that is handed back
      if (thread == 0) {
        ptx::tma_store_wait_read<0>();
        ptx::mbarrier_arrive(&smem.q_empty[0][group]);
      }
    }
  }

  // Before the CTA ends: shared memory must outlive the stores that read it.
  SKIM_DEVICE static void drain(int thread) {
    if (thread == 0) ptx::tma_store_wait<0>();
  }

 private:
  // Some columns of the row, normalised and packed.
  // Note: where no row of the warp saw a key, nobody need have written O.
  SKIM_DEVICE static void load(uint32_t address, float inverse, uint32_t (&words)[kChunk / 2]) {
    float o[kChunk] = {};
    if (ptx::warp_any(inverse != 0.0f)) {
      ptx::tcgen05_ld<kChunk>(o, address);
      ptx::tcgen05_wait_ld<kChunk>(o);
    }
#pragma unroll
    for (int i = 0; i < kChunk / 2; ++i) {
      words[i] = ptx::pack(typename Tr::Out{}, normalised(o[2 * i], inverse), normalised(o[2 * i + 1], inverse));
    }
  }

  SKIM_DEVICE static void store_tile(uint32_t address, float inverse, const WorkItem& item, const Params& p,
                                     Storage& smem, int group, int thread) {
    uint8_t* tile = smem.o(group);
    if (thread == 0) ptx::tma_store_wait_read<0>();  // the tile before this one has left the buffer
    ptx::bar_sync(kBarrier, kGroupThreads);
#pragma unroll
    for (int column = 0; column < Tr::kHeadDimV; column += kChunk) {
      uint32_t words[kChunk / 2];
      load(address + column, inverse, words);
      uint8_t* panel = tile + column / Storage::kColumnsO * Storage::kQPanelBytes;
#pragma unroll
      for (int i = 0; i < kChunk / 8; ++i) {
        const int chunk = column % Storage::kColumnsO / 8 + i;
        ptx::st_shared16(panel + swizzled_chunk(thread, chunk), words[4 * i], words[4 * i + 1], words[4 * i + 2],
                         words[4 * i + 3]);
      }
    }
    ptx::fence_proxy_async();
    ptx::bar_sync(kBarrier, kGroupThreads);
    if (thread != 0) return;
#pragma unroll
    for (int panel = 0; panel < Storage::kPanelsO; ++panel) {
      ptx::tma_store(&p.tma_o, tile + panel * Storage::kQPanelBytes, panel * Storage::kColumnsO,
                     item.q_offset + item.row0 + group * Tr::kGroupRows, item.head,
                     p.cu_seqlens_q == nullptr ? item.batch : 0);
    }
    ptx::tma_store_commit();
  }

  // Note: every lane loads, whether its row exists or not: tensor memory is read by whole warps.
  SKIM_DEVICE static void store_row(uint32_t address, float inverse, const WorkItem& item, const Params& p, int row) {
    const int64_t outer = p.cu_seqlens_q == nullptr ? item.batch * p.out_stride_batch : 0;
    auto* to = static_cast<uint16_t*>(p.out) + outer + (item.q_offset + int64_t{row}) * p.out_stride_row +
               item.head * p.out_stride_head;
#pragma unroll
    for (int column = 0; column < Tr::kHeadDimV; column += kChunk) {
      uint32_t words[kChunk / 2];
      load(address + column, inverse, words);
      if (row >= item.len_q) continue;
#pragma unroll
      for (int i = 0; i < kChunk / 2; ++i) {
        if (column + 2 * i >= p.head_dim_v) break;
        ptx::st_global(reinterpret_cast<uint32_t*>(to + column + 2 * i), words[i]);
      }
    }
  }
};

}  // namespace skimattn::sm100
