// Merges a leaf into those before it, in the part's place in the workspace; the result of a request that is one part
// goes to the output at once.
#pragma once
#include <skimattn/core/descale.cuh>
#include <skimattn/core/output.cuh>
#include <skimattn/sm90/decode/storage.cuh>
#include <skimattn/sm90/softmax.cuh>

namespace skimattn::sm90 {

template <class Tr>
struct DecodeEpilogue {
  using Place = PackedPlace<Layout>;
  static constexpr int kOut = Tr::kHeadDimV / 2;

  // `merged` is the scale of the leaves before, whose columns this thread left in the workspace, if there are any.
  // Note: the columns wait there, in L2, and not in registers or shared memory, of which neither has room for two O.
  SKIM_DEVICE static void fold(float (&o)[kOut], const RowState& rows, RowScale (&merged)[kThreadRows], bool is_first,
                               bool is_result, const Place& at, const DecodeItem& item, float scale_log2,
                               const Params& p, int thread) {
    const int row0 = thread / kWarpThreads * 16 + thread % kWarpThreads / 4;
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      const float max = rows.max[r] == -kInf ? -kInf : rows.max[r] * scale_log2;
      const Merge merge = merge_of(merged[r], {max, quad_sum(rows.sum[r])});
      merged[r] = merge.merged;
      if (!at.valid(r)) continue;
      float* part = part_row<Tr>(at.batch, item.base.head, item.base.row0 / Tr::kGroupRows, item.part,
                                 row0 + Layout::kRowStep * r, p);
      merge_columns(o, r, merge, is_first ? nullptr : part + at.column);
      if (is_result) {
        store_result(o, r, merged[r], at, p);
      } else {
        store_part(o, r, merged[r], at, part);
      }
    }
  }

 private:
  SKIM_DEVICE static void merge_columns(float (&o)[kOut], int r, const Merge& merge, const float* before) {
#pragma unroll
    for (int i = 0; i < kOut; i += 2) {
      if (Layout::row(i) != r) continue;
      ptx::Pair earlier = {0.0f, 0.0f};
      if (before != nullptr) earlier = ptx::ld_global_pair(before + Layout::column(i));
      o[i] = merge_column(merge, earlier.x, o[i]);
      o[i + 1] = merge_column(merge, earlier.y, o[i + 1]);
    }
  }

  SKIM_DEVICE static void store_part(const float (&o)[kOut], int r, const RowScale& scale, const Place& at,
                                     float* part) {
#pragma unroll
    for (int i = 0; i < kOut; i += 2) {
      if (Layout::row(i) == r) ptx::st_global_pair(part + at.column + Layout::column(i), {o[i], o[i + 1]});
    }
    if (at.column == 0) ptx::st_global_pair(part + Tr::kHeadDimV, {scale.max, scale.sum});
  }

  SKIM_DEVICE static void store_result(const float (&o)[kOut], int r, const RowScale& scale, const Place& at,
                                       const Params& p) {
    float inverse = inverse_of(scale.sum, scale.max, 1.0f, at.head_of(r), p);
    if constexpr (DecodePanels<Tr>::kConvertsKv) {
      inverse *= v_descale(p, at.batch, at.head_of(r) / (p.heads_q / p.heads_kv));
    }
    if (p.lse != nullptr && at.column == 0) store_lse(scale.sum, scale.max, 1.0f, r, at, p);
    uint16_t* to = output_row(at, r, p) + at.column;
#pragma unroll
    for (int i = 0; i < kOut; i += 2) {
      if (Layout::row(i) != r || at.column + Layout::column(i) >= p.head_dim_v) continue;
      ptx::st_global(reinterpret_cast<uint32_t*>(to + Layout::column(i)),
                     pack_output<typename Tr::Out>(o[i], o[i + 1], inverse));
    }
  }
};

}  // namespace skimattn::sm90
