// Merges what decode CTAs left in the workspace, row by row.
#pragma once
#include <skimattn/core/decode_work.cuh>
#include <skimattn/core/descale.cuh>
#include <skimattn/core/output.cuh>

namespace skimattn {

// The split of a request by the decode kernels' mask, which is a value here.
template <class Tr, Mask kMask_>
struct WithMask : Tr {
  static constexpr Mask kMask = kMask_;
};
template <class Tr, int kMask_ = 0>
SKIM_DEVICE Leaves leaves_by_mask(int len_q, int len_k, const Params& p) {
  if constexpr (kMask_ + 1 < kMasks) {
    if (p.mask != kMask_) return leaves_by_mask<Tr, kMask_ + 1>(len_q, len_k, p);
  }
  return leaves_of<WithMask<Tr, static_cast<Mask>(kMask_)>>(len_q, len_k, p);
}

template <class Tr>
class Combine {
 public:
  static constexpr int kWarps = 2 * kGroupWarps;
  static constexpr int kColumns = Tr::kHeadDimV / kWarpThreads;  // of a lane, next to each other
  static_assert(!kMlaColumns<Tr> || kColumns == kMlaBlock);
  // Of each branch: its columns, maximum and sum.
  static constexpr int kBranchFloats = Tr::kHeadDimV + 2;
  static_assert(kColumns == 2 || kColumns % 4 == 0);
  static_assert(kBranchFloats * Tr::kMaxBranches * 4 <= Tr::kSmemBytes);

  // What one row of a part holds of this lane's columns.
  struct State {
    RowScale scale = {-kInf, 0.0f};
    float o[kColumns] = {};
    SKIM_DEVICE void merge(const State& other) {
      const Merge merge = merge_of(scale, other.scale);
      scale = merge.merged;
#pragma unroll
      for (int i = 0; i < kColumns; ++i) o[i] = merge_column(merge, o[i], other.o[i]);
    }
  };

  SKIM_DEVICE explicit Combine(const Params& p)
      : p_(p), smem_(reinterpret_cast<float*>(ptx::dynamic_smem())), lane_(ptx::thread_index() % kWarpThreads) {}

  SKIM_DEVICE void run() {
    ptx::griddepcontrol_wait();
    const int most = imin(p_.len_q * (p_.qheads_per_kv), p_.decode_most_rows);
    const int rows = imin(p_.round_requests, p_.batch - p_.first_request) * p_.heads_kv * most;
    const int warp = ptx::thread_index() / kWarpThreads;
    if (p_.warp_rows != 0) {
      for (int i = ptx::block_index() * kWarps + warp; i < rows; i += ptx::grid_size() * kWarps) {
        const Row row = find_row(i / most, i % most);
        if (row.parts > 1) merge_in_warp(row);
      }
    } else {
      for (int i = ptx::block_index(); i < rows; i += ptx::grid_size()) {
        const Row row = find_row(i / most, i % most);
        if (row.parts > 1) merge_in_cta(row, warp);
      }
    }
  }

 private:
  // A packed row, its leaves [first, end) and their parts. Without parts there is no such row, or it is not decode's.
  struct Row {
    int row, head, batch, q_offset;
    int parts, first, end;
    const float* state;  // of the first part
    // As output.cuh wants to be told.
    SKIM_DEVICE int row_of(int) const { return row; }
    SKIM_DEVICE int head_of(int) const { return head; }
  };

  SKIM_DEVICE Row find_row(int pair, int packed) const {
    const int batch = p_.first_request + pair / p_.heads_kv, kv_head = pair % p_.heads_kv;
    const WorkItem item = make_item(p_, batch, kv_head, 0);
    const int qheads_per_kv = p_.qheads_per_kv, row = packed / qheads_per_kv;
    Row found = {row, kv_head * qheads_per_kv + packed % qheads_per_kv, batch, item.q_offset, 0, 0, 0, nullptr};
    if (row >= item.len_q || !decodes(p_, item.len_q, item.len_k)) return found;
    const Leaves leaves = leaves_by_mask<Tr>(item.len_q, item.len_k, p_);
    found.parts = parts_of(leaves, p_);
    found.first = leaves.first;
    found.end = leaves.last;
    found.state = part_row<Tr>(batch, kv_head, packed / Tr::kGroupRows, 0, packed % Tr::kGroupRows, p_);
    return found;
  }

  // Parts [lo, hi) of the row, one after the other.
  template <int kAhead>
  SKIM_DEVICE void merge_parts(State& merged, const Row& row, int lo, int hi) const {
    State next[kAhead];
    for (; lo < hi; lo += kAhead) {
      load_parts(next, row, lo, hi);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (lo + i < hi) merged.merge(next[i]);
      }
    }
  }
  template <int kCount>
  SKIM_DEVICE void load_parts(State (&next)[kCount], const Row& row, int lo, int hi) const {
    const int64_t step = static_cast<int64_t>(p_.part_rows) * kPartRowFloats<Tr>;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (lo + i >= 0 && lo + i < hi) next[i] = load(row.state + (lo + i) * step);
    }
  }

  // One branch, of leaves or twigs.
  SKIM_DEVICE State merge_branch(const Row& row, int branch) const {
    State merged;
    if (p_.part_shift != 0) {
      const int origin = row.first / Tr::kTwigLeaves, end = ceil_div(row.end, Tr::kTwigLeaves);
      const int first = branch * kTwigs;
      merge_parts<kTwigs>(merged, row, imax(first - origin, 0), imin(first + kTwigs, end) - origin);
      return merged;
    }
    const int end = row.end - row.first;
#pragma unroll 1
    for (int i = 0; i < Tr::kBranchLeaves; i += kAhead) {
      const int lo = branch * Tr::kBranchLeaves + i - row.first;
      State next[kAhead];
      load_parts(next, row, lo, end);
#pragma unroll
      for (int twig = 0; twig < kAhead; twig += Tr::kTwigLeaves) {
        State of_twig;
#pragma unroll
        for (int leaf = twig; leaf < twig + Tr::kTwigLeaves; ++leaf) {
          if (lo + leaf >= 0 && lo + leaf < end) of_twig.merge(next[leaf]);
        }
        if (lo + twig + Tr::kTwigLeaves > 0 && lo + twig < end) merged.merge(of_twig);
      }
    }
    return merged;
  }
  static constexpr int kTwigs = Tr::kBranchLeaves / Tr::kTwigLeaves;
  static constexpr int kAhead = kColumns > 4 ? 4 : 8;  // loads in flight: as many as registers hold

  SKIM_DEVICE int branches_of(const Row& row) const {
    return ceil_div(row.end, Tr::kBranchLeaves) - row.first / Tr::kBranchLeaves;
  }

  SKIM_DEVICE void merge_in_warp(const Row& row) const {
    State all;
    if (1 << p_.part_shift == Tr::kBranchLeaves) {
      merge_parts<kAhead>(all, row, 0, row.parts);
    } else {
      const int first = row.first / Tr::kBranchLeaves, branches = branches_of(row);
      for (int i = 0; i < branches; ++i) all.merge(merge_branch(row, first + i));
    }
    store(all, row);
  }

  SKIM_DEVICE void merge_in_cta(const Row& row, int warp) const {
    const int first = row.first / Tr::kBranchLeaves, branches = branches_of(row);
    if (1 << p_.part_shift == Tr::kBranchLeaves) {
      if (warp == 0) merge_in_warp(row);
      return;
    }
    for (int i = warp; i < branches; i += kWarps) keep(i, merge_branch(row, first + i));
    ptx::cta_sync();
    if (warp == 0) {
      State all;
      for (int i = 0; i < branches; ++i) all.merge(kept(i));
      store(all, row);
    }
    ptx::cta_sync();  // before the next row's branches are kept
  }

  SKIM_DEVICE State load(const float* part) const {
    State state;
    if constexpr (kColumns % 4 == 0) {
#pragma unroll
      for (int i = 0; i < kColumns; i += 4) ptx::ld_global_quad(part + lane_ * kColumns + i, state.o + i);
    } else {
      const ptx::Pair pair = ptx::ld_global_pair(part + lane_ * kColumns);
      state.o[0] = pair.x;
      state.o[1] = pair.y;
    }
    const ptx::Pair scale = ptx::ld_global_pair(part + Tr::kHeadDimV);
    state.scale = {scale.x, scale.y};
    return state;
  }

  SKIM_DEVICE void keep(int branch, const State& state) const {
    float* to = smem_ + branch * kBranchFloats;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) ptx::st_shared_float(to + lane_ * kColumns + i, state.o[i]);
    if (lane_ == 0) ptx::st_shared_float(to + Tr::kHeadDimV, state.scale.max);
    if (lane_ == 0) ptx::st_shared_float(to + Tr::kHeadDimV + 1, state.scale.sum);
  }
  SKIM_DEVICE State kept(int branch) const {
    const float* from = smem_ + branch * kBranchFloats;
    State state;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) state.o[i] = ptx::ld_shared_float(from + lane_ * kColumns + i);
    state.scale = {ptx::ld_shared_float(from + Tr::kHeadDimV), ptx::ld_shared_float(from + Tr::kHeadDimV + 1)};
    return state;
  }

  SKIM_DEVICE void store(const State& state, const Row& row) const {
    const RowScale& scale = state.scale;
    float inverse = inverse_of(scale.sum, scale.max, 1.0f, row.head, p_);
    inverse *= v_descale(p_, row.batch, row.head / p_.qheads_per_kv);
    if (p_.lse != nullptr && lane_ == 0) store_lse(scale.sum, scale.max, 1.0f, 0, row, p_);
    uint16_t* to = output_row(row, 0, p_) + lane_ * kColumns;
#pragma unroll
    for (int i = 0; i < kColumns; i += 2) {
      if (lane_ * kColumns + i >= p_.head_dim_v) continue;
      const int at = kMlaColumns<Tr> ? mla_place(i) : i;
      ptx::st_global(reinterpret_cast<uint32_t*>(to + i),
                     pack_output<typename Tr::Out>(state.o[at], state.o[at + 1], inverse));
    }
  }

  const Params& p_;
  float* smem_;
  const int lane_;
};

}  // namespace skimattn
