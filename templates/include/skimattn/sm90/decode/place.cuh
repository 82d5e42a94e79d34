// Where in the request a thread's fragment lies, of 64 packed rows.
#pragma once
#include <skimattn/core/decode_work.cuh>
#include <skimattn/core/score_mod.cuh>
#include <skimattn/sm90/softmax.cuh>

namespace skimattn::sm90 {

// From row `first` of the group and `column` on.
template <class Tr, class Layout_>
SKIM_DEVICE PackedPlace<Layout_> packed_place_from(const DecodeItem& item, int first, int column, const Params& p) {
  const int qheads_per_kv = p.qheads_per_kv, first_packed = item.base.row0 + first;
  PackedPlace<Layout_> at;
  at.column = column;
  at.batch = item.base.batch;
  at.len_q = item.base.len_q;
  at.len_k = item.base.len_k;
  at.q_offset = item.base.q_offset;
#pragma unroll
  for (int r = 0; r < Layout_::kRows; ++r) {
    const int packed = first_packed + Layout_::row_offset(r);
    at.row[r] = packed / qheads_per_kv;
    at.head[r] = item.base.head * qheads_per_kv + packed % qheads_per_kv;
    at.alibi[r] = 0.0f;
    if constexpr (Tr::kAlibi) at.alibi[r] = alibi_slope(at.batch, at.head[r], p) * p.bias_scale;
  }
  return at;
}

// By thread number `thread` of the warpgroup that has the item's rows.
template <class Tr>
SKIM_DEVICE PackedPlace<Layout> packed_place(const DecodeItem& item, int thread, const Params& p) {
  const int lane = thread % kWarpThreads;
  return packed_place_from<Tr, Layout>(item, Layout::first_row(thread), lane % 4 * 2, p);
}

}  // namespace skimattn::sm90
