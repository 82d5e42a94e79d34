// Merges the leaves of a part as they come, along a binary tree; the result of a request that is one part goes to the
// output at once.
#pragma once
#include <skimattn/core/output.cuh>
#include <skimattn/core/score_mod.cuh>
#include <skimattn/sm90/decode/storage.cuh>
#include <skimattn/sm90/softmax.cuh>

namespace skimattn::sm90 {

// Where a thread's fragment of the item's group lies.
template <class Tr>
SKIM_DEVICE PackedPlace<Layout> packed_place(const DecodeItem& item, int thread, const Params& p) {
  const int qheads_per_kv = p.heads_q / p.heads_kv, lane = thread % kWarpThreads;
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
    scale[r] = {rows.max[r] == -kInf ? -kInf : rows.max[r] * p.scale_log2, quad_sum(rows.sum[r])};
  }
}

// For a warpgroup that has kColumns columns of the output, from kFirst on. Another one may have the rest.
template <class Tr, int kColumns = Tr::kHeadDimV, int kFirst = 0>
class DecodeEpilogue {
 public:
  using Place = PackedPlace<Layout>;
  static constexpr int kOut = kColumns / 2;
  static constexpr bool kAllColumns = kColumns < Tr::kHeadDimV;  // MLA's outputs have as many as the kernel

  SKIM_DEVICE void start(const DecodeItem& item, const Place& at, const Params& p, int thread) {
    const int row = thread / kWarpThreads * 16 + thread % kWarpThreads / 4;
    part_ = part_row<Tr>(at.batch, item.base.head, item.base.row0 / Tr::kGroupRows, item.part, row, p) + kFirst +
            at.column;
    left_ = left_row<Tr>(0, row, p) + kFirst + at.column;
    only_ = item.only != 0;
  }

  // A leaf is done.
  // Note: left nodes wait in the workspace, that is in L2: neither registers nor shared memory have room for two O.
  SKIM_DEVICE void fold(float (&o)[kOut], RowScale (&scale)[kThreadRows], int leaf, bool is_last, const Place& at,
                        const Params& p) {
    const int64_t level_step = static_cast<int64_t>(p.part_rows) * kPartRowFloats<Tr>;
    float* left = left_;
    int level = 0;
    for (; level < p.part_level && ((leaf >> level & 1) != 0 || is_last); ++level, left += level_step) {
      if ((waiting_ >> level & 1) == 0) continue;  // its sibling has no leaves: it takes the parent's place
      waiting_ ^= 1u << level;
      merge_left(o, scale, at, left);
    }
    if (level < p.part_level) {
      waiting_ |= 1u << level;
      store_state(o, scale, at, left);
    } else if (only_) {
      store_result(o, scale, at, p);
    } else {
      store_state(o, scale, at, part_);
    }
  }

 private:
  static constexpr int kRowFloats = Layout::kRowStep * kPartRowFloats<Tr>;  // between the two rows of a thread

  // From a row's kFirst to its scale; there is room for one of another warpgroup's own.
  static constexpr int kScaleAt = Tr::kHeadDimV - kFirst + (kFirst > 0 ? 2 : 0);

  // Note: a thread reads only what it wrote itself; the four of a row each wrote its scale, behind its last columns.
  SKIM_DEVICE static void merge_left(float (&o)[kOut], RowScale (&scale)[kThreadRows], const Place& at,
                                     const float* left) {
    constexpr int kAhead = 8;  // loads of each row in flight
    Merge merge[kThreadRows];
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      if (!at.valid(r)) continue;
      const ptx::Pair before = ptx::ld_global_pair(left + r * kRowFloats + kScaleAt - at.column);
      merge[r] = merge_of({before.x, before.y}, scale[r]);
      scale[r] = merge[r].merged;
    }
#pragma unroll
    for (int first = 0; first < kOut / 4; first += kAhead) {
      ptx::Pair before[kThreadRows][kAhead] = {};
#pragma unroll
      for (int r = 0; r < kThreadRows; ++r) {
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          if (at.valid(r)) before[r][i] = ptx::ld_global_pair(left + r * kRowFloats + (first + i) * 8);
        }
      }
#pragma unroll
      for (int r = 0; r < kThreadRows; ++r) {
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          float* pair = o + (first + i) * 4 + 2 * r;
          if (!at.valid(r)) continue;
          pair[0] = merge_column(merge[r], before[r][i].x, pair[0]);
          pair[1] = merge_column(merge[r], before[r][i].y, pair[1]);
        }
      }
    }
  }

  SKIM_DEVICE static void store_state(const float (&o)[kOut], const RowScale (&scale)[kThreadRows], const Place& at,
                                      float* to) {
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      if (!at.valid(r)) continue;
      float* row = to + r * kRowFloats;
#pragma unroll
      for (int i = 0; i < kOut; i += 2) {
        if (Layout::row(i) == r) ptx::st_global_pair(row + Layout::column(i), {o[i], o[i + 1]});
      }
      ptx::st_global_pair(row + kScaleAt - at.column, {scale[r].max, scale[r].sum});
    }
  }

  SKIM_DEVICE static void store_result(const float (&o)[kOut], const RowScale (&scale)[kThreadRows], const Place& at,
                                       const Params& p) {
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      if (at.valid(r)) store_row(o, r, scale[r], at, p);
    }
  }

  SKIM_DEVICE static void store_row(const float (&o)[kOut], int r, const RowScale& scale, const Place& at,
                                    const Params& p) {
    const float inverse = inverse_of(scale.sum, scale.max, 1.0f, at.head_of(r), p);
    if (kFirst == 0 && p.lse != nullptr && at.column == 0) store_lse(scale.sum, scale.max, 1.0f, r, at, p);
    const int column = kFirst + at.column;
    uint16_t* to = output_row(at, r, p) + column;
#pragma unroll
    for (int i = 0; i < kOut; i += 2) {
      if (Layout::row(i) != r || (!kAllColumns && column + Layout::column(i) >= p.head_dim_v)) continue;
      ptx::st_global(reinterpret_cast<uint32_t*>(to + Layout::column(i)),
                     pack_output<typename Tr::Out>(o[i], o[i + 1], inverse));
    }
  }

  float *part_, *left_;    // this thread's first row and column of the part, and of left nodes of level 0
  bool only_;              // whether the part is all of the request
  uint32_t waiting_ = 0;   // levels at which a left node waits; none between two parts
};

}  // namespace skimattn::sm90
