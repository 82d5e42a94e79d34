// What the two warpgroups of an MLA decode CTA have in common that compute: each has half of the output's columns, for
// all 64 packed rows.
#pragma once
#include <skimattn/core/score_mod.cuh>
#include <skimattn/sm90/decode/epilogue.cuh>
#include <skimattn/sm90/descriptor.cuh>
#include <skimattn/sm90/mla/storage.cuh>

namespace skimattn::sm90 {

template <class Tr, bool kLeads>
class MlaGroup {
 public:
  using Storage = MlaStorage<Tr>;
  using Place = PackedPlace<Layout>;
  using Wgmma = ptx::Wgmma<typename Tr::Element, Tr::kHeadDimV / 2>;
  static constexpr bool kSkips = Tr::kSkip != Skip::kDense;
  static constexpr int kOut = Tr::kHeadDimV / 4;  // floats a thread holds of 64 rows of its half
  static constexpr int kPart = kLeads ? Storage::kLeft : Storage::kRight;  // of a tile: its columns of V
  static constexpr int kStepsV = Tr::kTileN / 16;

  SKIM_DEVICE MlaGroup(const Params& p, Storage& smem)
      : p_(p), smem_(smem), thread_(ptx::thread_index() % kGroupThreads) {}

 protected:
  // One arrival per warp, once all its lanes are done with what it stands for.
  SKIM_DEVICE void signal(uint64_t* barrier) const {
    ptx::warp_sync();
    if (thread_ % kWarpThreads == 0) ptx::mbarrier_arrive(barrier);
  }
  SKIM_DEVICE void release(int part) const { signal(&smem_.kv_empty[kv_.slot][part]); }
  SKIM_DEVICE void wait_for(int part) const {
    ptx::mbarrier_wait_parity(&smem_.kv_full[kv_.slot][part], kv_.phase);
  }

  // Note: read again where it is needed rather than kept, to save registers.
  SKIM_DEVICE DecodeItem read_item() const {
    const DecodeItem item = read_decode_item(smem_, work_.slot);
    const WorkItem& base = item.base;
    // Shuffled, so that the compiler knows them to be the same in the whole warp: branches depend on them.
    return {{ptx::shfl(base.valid, 0), ptx::shfl(base.batch, 0), ptx::shfl(base.head, 0), ptx::shfl(base.row0, 0),
             ptx::shfl(base.len_q, 0), ptx::shfl(base.len_k, 0), ptx::shfl(base.q_offset, 0),
             ptx::shfl(base.k_offset, 0)},
            ptx::shfl(item.part, 0),
            ptx::shfl(item.starts, 0)};
  }
  SKIM_DEVICE Leaves leaves(const DecodeItem& item) const {
    return leaves_of<Tr>(item.base.len_q, item.base.len_k, p_);
  }
  SKIM_DEVICE Span own_leaves(const DecodeItem& item) const {
    return leaves_of_part<Tr>(leaves(item), item.part, p_);
  }
  SKIM_DEVICE Span tiles_of(const DecodeItem& item, int leaf, const TileRange& range) const {
    return tiles_of_leaf(leaves(item), leaf, range);
  }

  SKIM_DEVICE bool wait_for_work() {
    ptx::mbarrier_wait_parity(&smem_.work_full[work_.slot], work_.phase);
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) merged_[r] = {-kInf, 0.0f};
    return ptx::shfl(static_cast<int>(ptx::ld_shared(&smem_.work[work_.slot][0])), 0) != 0;
  }
  SKIM_DEVICE void finish_work() {
    signal(&smem_.work_empty[work_.slot]);
    work_.advance();
  }

  SKIM_DEVICE int first_row() const { return thread_ / kWarpThreads * 16 + thread_ % kWarpThreads / 4; }
  SKIM_DEVICE void clear_output() {
#pragma unroll
    for (int i = 0; i < kOut; ++i) o_[i] = 0.0f;
  }
  // This half of V in the slot, as an operand.
  SKIM_DEVICE uint64_t values() const {
    return advance(mn_major(smem_.kv[0] + Storage::first_panel(kPart) * Storage::kKvPanelBytes, Storage::kKvPanelBytes),
                   kv_.slot * Storage::kKvBytes);
  }

  SKIM_DEVICE void fold(const RowScale (&scale)[kThreadRows], int leaf, const DecodeItem& item) {
    const Span own = own_leaves(item);
    const bool is_result = leaf == own.hi - 1 && parts_of<Tr>(leaves(item), p_) == 1;
    DecodeEpilogue<Tr, Tr::kHeadDimV / 2, kLeads ? 0 : Tr::kHeadDimV / 2>::fold(o_, scale, merged_, leaf == own.lo, is_result,
                                            packed_place<Tr>(item, thread_, p_), item, p_, thread_);
  }

  const Params& p_;
  Storage& smem_;
  const int thread_;  // of the warpgroup
  float o_[kOut];
  RowScale merged_[kThreadRows];  // of the leaves before
  uint32_t votes_ = 0;
  PipelineState<Tr::kStages> kv_;
  PipelineState<Storage::kVoteSlots> vote_;
  PipelineState<kWorkSlots> work_;
  PipelineState<1> told_;
};

}  // namespace skimattn::sm90
