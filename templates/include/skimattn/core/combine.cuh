// Merges what decode CTAs left in the workspace: one CTA to a packed row of a (request, kv head), one warp to a branch.
#pragma once
#include <skimattn/core/decode_work.cuh>
#include <skimattn/core/output.cuh>

namespace skimattn {

// The split of a request by the decode kernels' mask, which is a value here.
template <class Tr, Mask kMask_>
struct WithMask : Tr {
  static constexpr Mask kMask = kMask_;
};
template <class Tr>
SKIM_DEVICE Leaves leaves_by_mask(int len_q, int len_k, const Params& p) {
  switch (static_cast<Mask>(p.mask)) {
    case Mask::kCausal:
      return leaves_of<WithMask<Tr, Mask::kCausal>>(len_q, len_k, p);
    case Mask::kWindow:
      return leaves_of<WithMask<Tr, Mask::kWindow>>(len_q, len_k, p);
    case Mask::kChunked:
      return leaves_of<WithMask<Tr, Mask::kChunked>>(len_q, len_k, p);
    default:
      return leaves_of<WithMask<Tr, Mask::kFull>>(len_q, len_k, p);
  }
}

template <class Tr>
class Combine {
 public:
  static constexpr int kWarps = 2 * kGroupWarps;
  static constexpr int kColumns = Tr::kHeadDimV / kWarpThreads;  // of a lane, next to each other
  // Of each branch: its columns, maximum and sum.
  static constexpr int kBranchFloats = Tr::kHeadDimV + 2;
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

  SKIM_DEVICE explicit Combine(const Params& p) : p_(p), smem_(reinterpret_cast<float*>(ptx::dynamic_smem())) {}

  SKIM_DEVICE void run() {
    ptx::griddepcontrol_wait();
    const int most = imin(p_.len_q * (p_.heads_q / p_.heads_kv), p_.decode_most_rows);
    const int pairs = imin(p_.round_requests, p_.batch - p_.first_request) * p_.heads_kv;
    for (int row = ptx::block_index(); row < pairs * most; row += ptx::grid_size()) merge_row(row / most, row % most);
  }

 private:
  SKIM_DEVICE void merge_row(int pair, int packed) {
    const int batch = p_.first_request + pair / p_.heads_kv, kv_head = pair % p_.heads_kv;
    const WorkItem item = make_item(p_, batch, kv_head, 0);
    const int qheads_per_kv = p_.heads_q / p_.heads_kv, row = packed / qheads_per_kv;
    if (row >= item.len_q || !decodes(p_, item.len_q, item.len_k)) return;
    const Leaves leaves = leaves_by_mask<Tr>(item.len_q, item.len_k, p_);
    if (parts_of(leaves, p_) == 1) return;  // its CTA wrote the result
    const int first = leaves.first / Tr::kBranchLeaves, branches = ceil_div(leaves.last, Tr::kBranchLeaves) - first;
    const int warp = ptx::thread_index() / kWarpThreads, lane = ptx::thread_index() % kWarpThreads;
    for (int branch = warp; branch < branches; branch += kWarps) {
      keep(branch, lane, merge_branch(leaves, first + branch, batch, kv_head, packed, lane));
    }
    ptx::cta_sync();
    if (warp == 0) {
      State all;
      for (int branch = 0; branch < branches; ++branch) all.merge(kept(branch, lane));
      const RowAt at = {row, kv_head * qheads_per_kv + packed % qheads_per_kv, batch, item.q_offset};
      store(all, at, lane);
    }
    ptx::cta_sync();  // before the next row's branches are kept
  }

  // A row, as output.cuh wants to be told.
  struct RowAt {
    int row, head, batch, q_offset;
    SKIM_DEVICE int row_of(int) const { return row; }
    SKIM_DEVICE int head_of(int) const { return head; }
  };

  // The tree over one branch's parts. All leaves of a wide tree are loaded before any is merged.
  SKIM_DEVICE State merge_branch(const Leaves& leaves, int branch, int batch, int kv_head, int packed, int lane) const {
    const int nodes = Tr::kBranchLeaves >> p_.part_level, first = leaves.first >> p_.part_level;
    const int lo = imax(first - branch * nodes, 0);
    const int hi = imin(((leaves.last - 1) >> p_.part_level) + 1 - branch * nodes, nodes);
    const float* part = part_row<Tr>(batch, kv_head, packed / Tr::kGroupRows, branch * nodes - first,
                                     packed % Tr::kGroupRows, p_);
    const int64_t step = static_cast<int64_t>(p_.part_rows) * kPartRowFloats<Tr>;
    State left[kLevels];
    uint32_t held = 0;
    for (int first_node = lo; first_node < hi; first_node += kAhead) {
      State next[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (first_node + i < hi) next[i] = load(part + (first_node + i) * step, lane);
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (first_node + i < hi) climb(next[i], first_node + i, first_node + i == hi - 1, nodes, left, held);
      }
    }
    return left[kLevels - 1];
  }
  static constexpr int kLevels = 5;  // of nodes of a branch, its root included
  static_assert(1 << (kLevels - 1) == Tr::kBranchLeaves);
  static constexpr int kAhead = imin(8, 32 / kColumns);  // loads in flight: as many as registers hold

  // Merges node number `index` with the left nodes that wait for it; what comes out waits in its turn, the root in the
  // last place.
  SKIM_DEVICE static void climb(State state, int index, bool is_last, int nodes, State (&left)[kLevels],
                                uint32_t& held) {
#pragma unroll
    for (int level = 0; level < kLevels; ++level) {
      const bool is_root = nodes >> level == 1;
      const bool is_right = (index >> level & 1) != 0;
      if (is_root) {
        left[kLevels - 1] = state;
        return;
      }
      if (!is_right && !is_last) {
        left[level] = state;
        held |= 1u << level;
        return;
      }
      if ((held >> level & 1) != 0) {
        State merged = left[level];
        merged.merge(state);
        state = merged;
        held ^= 1u << level;
      }
    }
  }

  SKIM_DEVICE static State load(const float* part, int lane) {
    State state;
#pragma unroll
    for (int i = 0; i < kColumns; i += 2) {
      const ptx::Pair pair = ptx::ld_global_pair(part + lane * kColumns + i);
      state.o[i] = pair.x;
      state.o[i + 1] = pair.y;
    }
    const ptx::Pair scale = ptx::ld_global_pair(part + Tr::kHeadDimV);
    state.scale = {scale.x, scale.y};
    return state;
  }

  SKIM_DEVICE void keep(int branch, int lane, const State& state) const {
    float* to = smem_ + branch * kBranchFloats;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) ptx::st_shared_float(to + lane * kColumns + i, state.o[i]);
    if (lane == 0) ptx::st_shared_float(to + Tr::kHeadDimV, state.scale.max);
    if (lane == 0) ptx::st_shared_float(to + Tr::kHeadDimV + 1, state.scale.sum);
  }
  SKIM_DEVICE State kept(int branch, int lane) const {
    const float* from = smem_ + branch * kBranchFloats;
    State state;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) state.o[i] = ptx::ld_shared_float(from + lane * kColumns + i);
    state.scale = {ptx::ld_shared_float(from + Tr::kHeadDimV), ptx::ld_shared_float(from + Tr::kHeadDimV + 1)};
    return state;
  }

  SKIM_DEVICE void store(const State& state, const RowAt& at, int lane) const {
    const float inverse = inverse_of(state.scale.sum, state.scale.max, 1.0f, at.head, p_);
    if (p_.lse != nullptr && lane == 0) store_lse(state.scale.sum, state.scale.max, 1.0f, 0, at, p_);
    uint16_t* to = output_row(at, 0, p_) + lane * kColumns;
#pragma unroll
    for (int i = 0; i < kColumns; i += 2) {
      if (lane * kColumns + i >= p_.head_dim_v) continue;
      ptx::st_global(reinterpret_cast<uint32_t*>(to + i),
                     pack_output<typename Tr::Out>(state.o[i], state.o[i + 1], inverse));
    }
  }

  const Params& p_;
  float* smem_;
};

}  // namespace skimattn
