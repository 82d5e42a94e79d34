// Merges the leaves of a part as they come, along a binary tree; the result of a request that is one part goes to the
// output at once.
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

  // A leaf is done. `left` has a bit for each level at which a left node waits for its sibling.
  // Note: left nodes wait in the workspace, that is in L2: neither registers nor shared memory have room for two O.
  SKIM_DEVICE static void fold(float (&o)[kOut], const RowState& rows, float scale_log2, int leaf, bool is_last,
                               uint32_t& left, const Place& at, const DecodeItem& item, bool is_result, const Params& p,
                               int thread) {
    const int row0 = thread / kWarpThreads * 16 + thread % kWarpThreads / 4;
    RowScale scale[kThreadRows];
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      scale[r] = {rows.max[r] == -kInf ? -kInf : rows.max[r] * scale_log2, quad_sum(rows.sum[r])};
    }
    TreeNode node = {0, leaf};
    for (; node.level < p.part_level && (node.is_right() || is_last); node = node.parent()) {
      if ((left >> node.level & 1) == 0) continue;
      left ^= 1u << node.level;
#pragma unroll
      for (int r = 0; r < kThreadRows; ++r) {
        if (at.valid(r)) merge_left(o, r, scale[r], at, left_row<Tr>(node.level, row0 + Layout::kRowStep * r, p));
      }
    }
    const bool is_part = node.level == p.part_level;
    if (!is_part) left |= 1u << node.level;
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      const int row = row0 + Layout::kRowStep * r;
      if (!at.valid(r)) continue;
      if (is_part && is_result) {
        store_result(o, r, scale[r], at, p);
      } else {
        const int group = item.base.row0 / Tr::kGroupRows;
        store_state(o, r, scale[r], at,
                    is_part ? part_row<Tr>(at.batch, item.base.head, group, item.part, row, p)
                            : left_row<Tr>(node.level, row, p));
      }
    }
  }

 private:
  // Note: a thread reads only what it wrote itself; the four of a row each wrote its scale.
  SKIM_DEVICE static void merge_left(float (&o)[kOut], int r, RowScale& scale, const Place& at, const float* before) {
    constexpr int kAhead = 8;  // loads in flight
    const ptx::Pair left = ptx::ld_global_pair(before + Tr::kHeadDimV);
    const Merge merge = merge_of({left.x, left.y}, scale);
    scale = merge.merged;
#pragma unroll
    for (int first = 0; first < kOut / 4; first += kAhead) {
      ptx::Pair earlier[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) earlier[i] = ptx::ld_global_pair(before + at.column + (first + i) * 8);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        float* pair = o + (first + i) * 4 + 2 * r;
        pair[0] = merge_column(merge, earlier[i].x, pair[0]);
        pair[1] = merge_column(merge, earlier[i].y, pair[1]);
      }
    }
  }

  SKIM_DEVICE static void store_state(const float (&o)[kOut], int r, const RowScale& scale, const Place& at,
                                      float* to) {
#pragma unroll
    for (int i = 0; i < kOut; i += 2) {
      if (Layout::row(i) == r) ptx::st_global_pair(to + at.column + Layout::column(i), {o[i], o[i + 1]});
    }
    ptx::st_global_pair(to + Tr::kHeadDimV, {scale.max, scale.sum});
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
