// The warp that issues all matrix products: one lane, for all groups. S = Q.K^T of a group's next tile is issued right
// after P.V of the tile before, so that one group's softmax runs under the other's products. A skipped tile's P.V is
// left out; all else stays as it is.
#pragma once
#include <skimattn/sm100/descriptor.cuh>
#include <skimattn/sm100/prefill/storage.cuh>

namespace skimattn::sm100 {

template <class Tr>
class MmaWarp {
 public:
  using Storage = SharedStorage<Tr>;
  using Element = typename Tr::Element;
  using Columns = TmemColumns<Tr>;
  static constexpr bool kSkips = Tr::kSkip != Skip::kDense;
  static constexpr int kLast = Tr::kConsumers - 1;                                  // the group that comes last
  static constexpr int kStepBytes = 32;                                             // of a row, along K, in one step
  static constexpr int kStepKeys = kStepBytes / sizeof(typename Element::Storage);  // elements of that
  static constexpr uint32_t kQk = instruction_descriptor<Element, Tr::kTileN, false>();
  static constexpr uint32_t kPv = instruction_descriptor<Element, Tr::kHeadDimV, true>();

  SKIM_DEVICE MmaWarp(const Params& p, Storage& smem) : p_(p), smem_(smem), tmem_(ptx::ld_shared(&smem.tmem_address)) {}

  // One lane.
  SKIM_DEVICE void run() {
    for (WorkItem item = receive(); item.valid; item = receive()) {
      const TileRange range = cta_range<Tr>(item, p_);
      if (range.last > range.first) {
        mainloop(range.last - range.first);
      } else {
        pass_over();
      }
      q_.advance();
    }
  }

 private:
  SKIM_DEVICE WorkItem receive() {
    ptx::mbarrier_wait_parity(&smem_.work_full[work_.slot], work_.phase);
    const WorkItem item = read_work(smem_, work_.slot);
    ptx::mbarrier_arrive(&smem_.work_empty[work_.slot]);
    work_.advance();
    return item;
  }

  // Step i issues P.V of tile i - 1 and Q.K^T of tile i.
  SKIM_DEVICE void mainloop(int tiles) {
    bool started[Tr::kConsumers] = {};  // whether O holds anything of this item
#pragma unroll 1
    for (int i = 0; i <= tiles; ++i) {
      bool v_seen = false;
#pragma unroll
      for (int group = 0; group < Tr::kConsumers; ++group) {
        if (i > 0) {
          consume(group, started[group], v_seen);
          if (group == kLast) hand_back_v(v_seen);
        }
        if (i < tiles) {
          if (group == 0) wait_tmem(&smem_.k_full[k_.slot], k_.phase);
          if (i == 0) wait_tmem(&smem_.q_full[q_.slot][group], q_.phase);
          issue_qk(group);
          announce(&smem_.s_full[group]);
          if (group == kLast) announce(&smem_.k_empty[k_.slot]);
        } else {
          announce(&smem_.o_full[group]);
        }
        if (Tr::kSeparateO && i == tiles - 1) announce(&smem_.q_empty[q_.slot][group]);
      }
      if (i < tiles) k_.advance();
    }
  }

  // An item without a visible key: its Q is not used, but its phases are counted.
  // Note: where O takes the place of Q, correction hands that back. It must not before this thread has seen it come, or
  // the next one's phase would be waited for in vain.
  SKIM_DEVICE void pass_over() {
    for (int group = 0; group < Tr::kConsumers; ++group) {
      ptx::mbarrier_wait_parity(&smem_.q_full[q_.slot][group], q_.phase);
      if constexpr (Tr::kSeparateO) {
        hand_back_unused(&smem_.q_empty[q_.slot][group]);
      } else {
        announce(&smem_.o_full[group]);
      }
    }
  }

  // Arrives when all products so far are done.
  // Note: twice. The ISA says what a commit tells of products, but not that it passes on what else this thread knows:
  // that a copy has landed, that a word of shared memory has been read. An arrival of the thread's own does.
  SKIM_DEVICE void announce(uint64_t* barrier) {
    ptx::mbarrier_arrive(barrier);
    ptx::tcgen05_commit(barrier);
  }

  SKIM_DEVICE void hand_back_unused(uint64_t* empty) {
    for (int i = 0; i < Storage::kAnnouncements; ++i) ptx::mbarrier_arrive(empty);
  }

  // Waits until the group has read its scores and written its probabilities; multiplies these unless it skips the tile.
  SKIM_DEVICE void consume(int group, bool& started, bool& v_seen) {
    wait_tmem(&smem_.p_full[group], tile_ & 1);
    const bool keeps = !kSkips || ptx::ld_shared(&smem_.votes[tile_ % Storage::kVoteSlots][group].kept) == tile_ + 1;
    if (!v_seen && (keeps || Tr::kStagesV == 1)) {  // for the one slot, see Correction::clear_unseen
      wait_tmem(&smem_.v_full[v_.slot], v_.phase);
      v_seen = true;
    }
    if (!keeps) return;
    issue_pv(group, started);
    started = true;
    if constexpr (!Tr::kOrderedProducts) {
      // The ISA orders only products of one shape and accumulator: P must have been read before S is overwritten.
      ptx::tcgen05_commit(&smem_.pv_done[group]);
      wait_tmem(&smem_.pv_done[group], pv_phase_[group]);
      pv_phase_[group] ^= 1;
    }
  }

  // Once all groups are through with the tile.
  // Note: a V that nobody used must still be seen full: the parity of a phase that was never waited for would be taken
  // for the one before it.
  SKIM_DEVICE void hand_back_v(bool v_seen) {
    if (v_seen) {
      announce(&smem_.v_empty[v_.slot]);
    } else {
      ptx::mbarrier_wait_parity(&smem_.v_full[v_.slot], v_.phase);
      hand_back_unused(&smem_.v_empty[v_.slot]);
    }
    v_.advance();
    ++tile_;
  }

  SKIM_DEVICE void issue_qk(int group) {
    constexpr int kSteps = Tr::kHeadDim / kStepKeys, kPanelSteps = kPanelRowBytes / kStepBytes;
    const uint64_t q = k_major(smem_.q(q_.slot, group)), k = k_major(smem_.k[k_.slot]);
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int panel = i / kPanelSteps, inside = i % kPanelSteps * kStepBytes;
      ptx::tcgen05_mma_ss<Element>(tmem_ + Columns::s(group), advance(q, panel * Storage::kQPanelBytes + inside),
                                   advance(k, panel * Storage::kKvPanelBytes + inside), kQk, i > 0);
    }
  }

  SKIM_DEVICE void issue_pv(int group, bool started) {
    constexpr int kStepColumns = kStepBytes / 4;  // of P in tensor memory
    const uint64_t v = mn_major(smem_.v[v_.slot], Storage::kKvPanelBytes);
#pragma unroll
    for (int i = 0; i < Tr::kTileN / kStepKeys; ++i) {
      ptx::tcgen05_mma_ts<Element>(tmem_ + Columns::o(group), tmem_ + Columns::p(group) + i * kStepColumns,
                                   advance(v, i * kStepKeys * kPanelRowBytes), kPv, started || i > 0);
    }
  }

  const Params& p_;
  Storage& smem_;
  const uint32_t tmem_;
  PipelineState<Tr::kStagesQ> q_;
  PipelineState<Tr::kStages> k_;
  PipelineState<Tr::kStagesV> v_;
  PipelineState<kWorkSlots> work_;
  uint32_t tile_ = 0;  // tiles seen so far, over all items
  uint32_t pv_phase_[Tr::kConsumers] = {};
};

}  // namespace skimattn::sm100
