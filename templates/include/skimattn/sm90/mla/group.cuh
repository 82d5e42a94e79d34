// What the two warpgroups of an MLA decode CTA have in common that compute: each has half of the output's columns, for
// all 64 packed rows.
#pragma once
#include <skimattn/sm90/descriptor.cuh>
#include <skimattn/sm90/mla/epilogue.cuh>
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
  SKIM_DEVICE void wait_for(int part) const { ptx::mbarrier_wait_parity(&smem_.kv_full[kv_.slot][part], kv_.phase); }

  // Shuffled, so that the compiler knows it to be the same in the whole warp: branches depend on it.
  SKIM_DEVICE static int uniform(int value) { return ptx::shfl(value, 0); }

  // Note: read again where it is needed rather than kept, as is what follows from it: the main loop has no register to
  // spare.
  SKIM_DEVICE DecodeItem read_item() const {
    const uint32_t* from = smem_.work[ptx::late(work_.slot)];
    int words[kDecodeWords];
#pragma unroll
    for (int i = 0; i < kDecodeWords; i += 4) {
      int four[4];
      ptx::ld_shared16(from + i, four);
#pragma unroll
      for (int j = 0; j < 4; ++j) words[i + j] = four[j];
    }
    return item_of_words(words);
  }

  SKIM_DEVICE bool load_work() {
    ptx::mbarrier_wait_parity(&smem_.work_full[work_.slot], work_.phase);
    const DecodeItem item = read_item();
    lo_ = uniform(item.lo);
    hi_ = uniform(item.hi);
    return uniform(item.base.valid) != 0;
  }
  SKIM_DEVICE void finish_work() {
    signal(&smem_.work_empty[work_.slot]);
    work_.advance();
  }

  SKIM_DEVICE Place place_of(const DecodeItem& item) const { return packed_place<Tr>(item, thread_, p_); }
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

  // The leaf's tiles.
  SKIM_DEVICE static Span tiles_of(const DecodeItem& item, int leaf) {
    return {uniform(item.tiles_of(leaf).lo), uniform(item.tiles_of(leaf).hi)};
  }

  // A leaf is done.
  SKIM_DEVICE void merge_leaf(const RowMerge (&merge)[kThreadRows], int leaf, const Place& at, const DecodeItem& item) {
    const bool is_result = leaf == hi_ - 1 && item.only != 0;
    MlaEpilogue<Tr, kLeads ? 0 : Tr::kHeadDimV / 2>::add(o_, merge, leaf == lo_, is_result, thread_, at, item, p_);
  }

  const Params& p_;
  Storage& smem_;
  const int thread_;  // of the warpgroup
  float o_[kOut];
  int lo_, hi_;  // leaves of the part
  uint32_t votes_ = 0;
  PipelineState<Tr::kStages> kv_;
  PipelineState<Storage::kVoteSlots> vote_;
  PipelineState<kWorkSlots> work_;
  PipelineState<1> told_;
};

}  // namespace skimattn::sm90
