// Merges the leaves of a part as they come; the result of a request that is one part goes to the output at once.
#pragma once
#include <skimattn/core/descale.cuh>
#include <skimattn/core/output.cuh>
#include <skimattn/sm90/decode/storage.cuh>
#include <skimattn/sm90/softmax.cuh>

namespace skimattn::sm90 {

// `Layout_` says where the kOut elements of a thread's output lie; pairs of them are neighbours in one row.
template <class Tr, class Layout_ = Layout, int kOut = Tr::kHeadDimV / 2>
class DecodeEpilogue {
 public:
  using Place = PackedPlace<Layout_>;
  using Storage = DecodeStorage<Tr>;
  static constexpr int kRows = Layout_::kRows;

  SKIM_DEVICE void start() {
#pragma unroll
    for (int r = 0; r < kRows; ++r) twig_[r] = branch_[r] = {-kInf, 0.0f};
    starts_twig_ = starts_branch_ = true;
  }

  // A leaf is done; whether it ends a twig, so that end_twig() has to come.
  // O of the twig's leaves before it waits in shared memory: there are no registers for two of it.
  // `max` are raw scores, worth `scale_log2` a unit; whole_sum(r) is the sum of row r.
  template <class WholeSum>
  SKIM_DEVICE bool add(float (&o)[kOut], const float (&max)[kRows], WholeSum whole_sum, float scale_log2, int leaf,
                       bool is_last, Storage& smem, int thread) {
    Merge merge[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float max_log2 = max[r] == -kInf ? -kInf : max[r] * scale_log2;
      merge[r] = merge_of(twig_[r], {max_log2, whole_sum(r)});
      twig_[r] = merge[r].merged;
    }
    const bool ends_twig = is_last || (leaf + 1) % Tr::kTwigLeaves == 0;
#pragma unroll
    for (int chunk = 0; chunk < kOut / 4; ++chunk) {
      float before[4] = {};
      if (!starts_twig_) ptx::ld_shared16(smem.merged(chunk, thread), before);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& x = o[4 * chunk + i];
        x = merge_column(merge[Layout_::row(4 * chunk + i)], before[i], x);
      }
      if (!ends_twig) ptx::st_shared16(smem.merged(chunk, thread), o + 4 * chunk);
    }
    starts_twig_ = ends_twig;
    return ends_twig;
  }

  // Twigs are merged in the part's place in the workspace, of which each thread reads what it wrote.
  SKIM_DEVICE void end_twig(float (&o)[kOut], bool is_last, const DecodeItem& item, const Place& at, const Params& p,
                            int thread) {
    const int row = Layout_::first_row(thread), group = item.base.row0 / Tr::kGroupRows;
    float* const first = part_row<Tr>(at.batch, item.base.head, group, item.part, row, p) + at.column;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float* const part = first + Layout_::row_offset(r) * kPartRowFloats<Tr>;
      if (1 << p.part_shift > Tr::kTwigLeaves) {
        const Merge merge = merge_of(branch_[r], twig_[r]);
        branch_[r] = merge.merged;
        if (at.valid(r)) merge_twig(o, r, merge, starts_branch_ ? nullptr : part);
      } else {
        branch_[r] = twig_[r];
      }
      twig_[r] = {-kInf, 0.0f};
      if (!at.valid(r)) continue;
      if (is_last && item.only != 0) {
        store_row(o, r, branch_[r], at, p);
      } else {
        store_state(o, r, branch_[r], at, part);
      }
    }
    starts_branch_ = false;
  }

 private:
  SKIM_DEVICE static void merge_twig(float (&o)[kOut], int r, const Merge& merge, const float* before) {
#pragma unroll
    for (int i = 0; i < kOut; i += 2) {
      if (Layout_::row(i) != r) continue;
      ptx::Pair pair = {0.0f, 0.0f};
      if (before != nullptr) pair = ptx::ld_global_pair(before + Layout_::column(i));
      o[i] = merge_column(merge, pair.x, o[i]);
      o[i + 1] = merge_column(merge, pair.y, o[i + 1]);
    }
  }

  SKIM_DEVICE static void store_state(const float (&o)[kOut], int r, const RowScale& scale, const Place& at,
                                      float* to) {
#pragma unroll
    for (int i = 0; i < kOut; i += 2) {
      if (Layout_::row(i) == r) ptx::st_global_pair(to + Layout_::column(i), {o[i], o[i + 1]});
    }
    if (at.column == 0) ptx::st_global_pair(to + Tr::kHeadDimV, {scale.max, scale.sum});
  }

  SKIM_DEVICE static void store_row(const float (&o)[kOut], int r, const RowScale& scale, const Place& at,
                                    const Params& p) {
    float inverse = inverse_of(scale.sum, scale.max, 1.0f, at.head_of(r), p);
    if constexpr (Storage::Panels::kConvertsKv) inverse *= v_descale(p, at.batch, at.head_of(r) / p.qheads_per_kv);
    if (p.lse != nullptr && at.column == 0) store_lse(scale.sum, scale.max, 1.0f, r, at, p);
    uint16_t* to = output_row(at, r, p) + at.column;
#pragma unroll
    for (int i = 0; i < kOut; i += 2) {
      if (Layout_::row(i) != r || at.column + Layout_::column(i) >= p.head_dim_v) continue;
      ptx::st_global(reinterpret_cast<uint32_t*>(to + Layout_::column(i)),
                     pack_output<typename Tr::Out>(o[i], o[i + 1], inverse));
    }
  }

  bool starts_twig_, starts_branch_;  // whether the next leaf, or twig, is the first
  RowScale twig_[kRows], branch_[kRows];
};

}  // namespace skimattn::sm90
