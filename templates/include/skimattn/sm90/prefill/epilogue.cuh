// Normalises one group's output and stores it: whole 64-row tiles through shared memory and TMA, the last rows of a
// request directly, so that nothing of a neighbour is touched.
#pragma once
#include <skimattn/core/output.cuh>
#include <skimattn/sm90/descriptor.cuh>
#include <skimattn/sm90/prefill/storage.cuh>
#include <skimattn/sm90/softmax.cuh>

namespace skimattn::sm90 {

template <class Tr>
struct Epilogue {
  using Storage = SharedStorage<Tr>;
  using Element = typename Tr::Element;
  using Place = FragmentPlace<Layout>;
  static constexpr int kOut = Tr::kHeadDimV / 2, kColumns = Storage::kColumnsO;

  // `unit` is what a product of 8-bit elements counts.
  SKIM_DEVICE static void store(const float (&o)[kOut], const RowState& rows, float unit, const Place& at,
                                const WorkItem& item, const Params& p, Storage& smem, int group, int thread) {
    float inverse[kThreadRows];
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      const float sum = quad_sum(rows.sum[r]) * kSumUnit<Element>;
      inverse[r] = inverse_of(sum, rows.max[r], scale_log2(unit, p), at.head, p);
      if (p.lse != nullptr && at.column == 0 && at.valid(r)) store_lse(sum, rows.max[r], scale_log2(unit, p), r, at, p);
    }
    if constexpr (kDescaled<Element>) {
      const float of_values = kSumUnit<Element> * v_descale(p, at.batch, at.head / (p.heads_q / p.heads_kv));
#pragma unroll
      for (int r = 0; r < kThreadRows; ++r) inverse[r] *= of_values;
    }
    const bool whole = item.row0 + (group + 1) * Tr::kGroupRows <= item.len_q;
    if (whole) {
      store_tile(o, inverse, item, p, smem, group, thread);
    } else {
      store_rows(o, inverse, at, p);
    }
    if constexpr (!Tr::kSeparateO) {
      if (!whole) ptx::bar_sync(NamedBarrier<Tr>::kGroup + group, kGroupThreads);
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

  // What one unit of a raw score is worth.
  // Note: written so that without descales nothing is computed, and no register kept.
  SKIM_DEVICE static float scale_log2(float unit, const Params& p) {
    return kDescaled<Element> && !Tr::kSoftcap ? p.scale_log2 * unit : p.scale_log2;
  }

 private:
  SKIM_DEVICE static void store_tile(const float (&o)[kOut], const float (&inverse)[kThreadRows], const WorkItem& item,
                                     const Params& p, Storage& smem, int group, int thread) {
    const int bar = NamedBarrier<Tr>::kGroup + group, lane = thread % kWarpThreads;
    const int row = thread / kWarpThreads * 16 + lane / 4;
    uint8_t* tile = smem.o(group);
    if (thread == 0) ptx::tma_store_wait_read<0>();  // the tile before this one has left the buffer
    ptx::bar_sync(bar, kGroupThreads);
#pragma unroll
    for (int chunk = 0; chunk < kColumns / 8; ++chunk) {
      // The swizzle of a row repeats every 8 rows, so one address serves both rows and all panels.
      uint8_t* to = tile + swizzled_offset(row, chunk * 8) + lane % 4 * 4;
#pragma unroll
      for (int panel = 0; panel < Storage::kPanelsO; ++panel) {
#pragma unroll
        for (int r = 0; r < kThreadRows; ++r) {
          const int i = panel * (kColumns / 2) + chunk * 4 + 2 * r;
          if (i >= kOut) continue;  // the last panel's other half, which is no part of the output: copies clip it
          ptx::st_shared(to + panel * Storage::kQPanelBytes + r * 8 * kPanelRowBytes,
                         pack_output<typename Tr::Out>(o[i], o[i + 1], inverse[r]));
        }
      }
    }
    ptx::fence_proxy_async();
    ptx::bar_sync(bar, kGroupThreads);
    if (thread != 0) return;
#pragma unroll
    for (int panel = 0; panel < Storage::kPanelsO; ++panel) {
      ptx::tma_store(&p.tma_o, tile + panel * Storage::kQPanelBytes, panel * kColumns,
                     item.q_offset + item.row0 + group * Tr::kGroupRows, item.head,
                     p.cu_seqlens_q == nullptr ? item.batch : 0);
    }
    ptx::tma_store_commit();
  }

  SKIM_DEVICE static void store_rows(const float (&o)[kOut], const float (&inverse)[kThreadRows], const Place& at,
                                     const Params& p) {
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      if (!at.valid(r)) continue;
      uint16_t* to = output_row(at, r, p) + at.column;
#pragma unroll
      for (int i = 2 * r; i < kOut; i += 4) {
        const int column = Layout::column(i);
        if (column >= p.head_dim_v) break;
        ptx::st_global(reinterpret_cast<uint32_t*>(to + column),
                       pack_output<typename Tr::Out>(o[i], o[i + 1], inverse[r]));
      }
    }
  }
};

}  // namespace skimattn::sm90
