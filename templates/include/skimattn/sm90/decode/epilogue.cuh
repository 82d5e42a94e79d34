// Merges a leaf into those before it, in the part's place in the workspace; the result of a request that is one part
// goes to the output at once.
#pragma once
#include <skimattn/core/output.cuh>
#include <skimattn/core/score_mod.cuh>
#include <skimattn/sm90/decode/storage.cuh>
#include <skimattn/sm90/softmax.cuh>

namespace skimattn::sm90 {

// Where a thread's fragment of the item's group lies.
template <class Tr>
SKIM_DEVICE PackedPlace<Layout> packed_place(const DecodeItem& item, int thread, const Params& p) {
  const int qheads_per_kv = item.qheads_per_kv(p), lane = thread % kWarpThreads;
  const int first = item.base.row0 + thread / kWarpThreads * 16 + lane / 4;
  PackedPlace<Layout> at;
  at.column = lane % 4 * 2;
  at.batch = item.base.batch;
  at.len_q = item.base.len_q;
  at.len_k = item.base.len_k;
  at.q_offset = item.base.q_offset;
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) {
    const int packed = first + Layout::kRowStep * r;
    at.row[r] = packed / qheads_per_kv;
    at.head[r] = item.base.head * qheads_per_kv + packed % qheads_per_kv;
    at.alibi[r] = 0.0f;
    if constexpr (Tr::kAlibi) at.alibi[r] = alibi_slope(at.batch, at.head[r], p) * p.bias_scale;
  }
  return at;
}

// A leaf's state at its end, but for the columns.
SKIM_DEVICE void leaf_scale(const RowState& rows, const Params& p, RowScale (&scale)[kThreadRows]) {
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) {
    const float max = rows.max[r] == -kInf ? -kInf : rows.max[r] * p.scale_log2;
    scale[r] = {max, quad_sum(rows.sum[r])};
  }
}

// For a warpgroup that has kColumns columns of the output, from kFirst on.
template <class Tr, int kColumns = Tr::kHeadDimV, int kFirst = 0>
struct DecodeEpilogue {
  using Place = PackedPlace<Layout>;
  static constexpr int kOut = kColumns / 2;
  static constexpr bool kTells = kFirst == 0;  // about the rows as a whole

  // `merged` is the scale of the leaves before, whose columns this thread left in the workspace, if there are any.
  // Note: the columns wait there, in L2, and not in registers or shared memory, of which neither has room for two O.
  SKIM_DEVICE static void fold(float (&o)[kOut], const RowScale (&leaf)[kThreadRows], RowScale (&merged)[kThreadRows],
                               bool is_first, bool is_result, const Place& at, const DecodeItem& item, const Params& p,
                               int thread) {
    const int row0 = thread / kWarpThreads * 16 + thread % kWarpThreads / 4;
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      const Merge merge = merge_of(merged[r], leaf[r]);
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
      if (Layout::row(i) == r) ptx::st_global_pair(part + kFirst + at.column + Layout::column(i), {o[i], o[i + 1]});
    }
    if (kTells && at.column == 0) ptx::st_global_pair(part + Tr::kHeadDimV, {scale.max, scale.sum});
  }

  SKIM_DEVICE static void store_result(const float (&o)[kOut], int r, const RowScale& scale, const Place& at,
                                       const Params& p) {
    const float inverse = inverse_of(scale.sum, scale.max, 1.0f, at.head_of(r), p);
    if (kTells && p.lse != nullptr && at.column == 0) store_lse(scale.sum, scale.max, 1.0f, r, at, p);
    const int first = kFirst + at.column;
    uint16_t* to = output_row(at, r, p) + first;
#pragma unroll
    for (int i = 0; i < kOut; i += 2) {
      if (Layout::row(i) != r || first + Layout::column(i) >= p.head_dim_v) continue;
      ptx::st_global(reinterpret_cast<uint32_t*>(to + Layout::column(i)),
                     pack_output<typename Tr::Out>(o[i], o[i + 1], inverse));
    }
  }
};

}  // namespace skimattn::sm90
