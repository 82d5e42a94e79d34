// Where in the request a thread's fragment lies, of 64 packed rows.
#pragma once
#include <skimattn/core/decode_work.cuh>
#include <skimattn/core/score_mod.cuh>
#include <skimattn/sm90/softmax.cuh>

namespace skimattn::sm90 {

// By thread number `thread` of the warpgroup that has the item's rows.
template <class Tr>
SKIM_DEVICE PackedPlace<Layout> packed_place(const DecodeItem& item, int thread, const Params& p) {
  const int qheads_per_kv = p.qheads_per_kv, lane = thread % kWarpThreads;
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

}  // namespace skimattn::sm90
