// What lives in shared memory and in tensor memory, which warp does what, and who signals whom.
#pragma once
#include <skimattn/core/pipeline.cuh>
#include <skimattn/sm100/tmem.cuh>

namespace skimattn::sm100 {

// Warpgroups: softmax of each row group, then correction, then four warps with a job each.
template <class Tr>
struct Roles {
  static constexpr int kCorrection = Tr::kConsumers, kSingles = Tr::kConsumers + 1;
  static constexpr int kMma = 0, kKeys = 1, kValues = 2, kQueries = 3;     // warps of the last warpgroup
  static constexpr int kReaders = (Tr::kConsumers + 1) * kGroupWarps + 3;  // of a work item: all but kKeys
};

// Columns of tensor memory, one row a lane: a tile of scores S for each group, then an output O for each. P takes the
// place of the second half of S.
template <class Tr>
struct TmemColumns {
  static constexpr int kP = 64;
  static constexpr int kUsed = Tr::kConsumers * (Tr::kTileN + Tr::kHeadDimV);
  static_assert(Tr::kTileN == 128 && kUsed <= Tr::kTmemColumns);
  SKIM_DEVICE static constexpr int s(int group) { return group * Tr::kTileN; }
  SKIM_DEVICE static constexpr int p(int group) { return s(group) + kP; }
  SKIM_DEVICE static constexpr int o(int group) { return Tr::kConsumers * Tr::kTileN + group * Tr::kHeadDimV; }
};

template <class Tr>
struct SharedStorage {
  static constexpr int kColumns = kPanelColumns<typename Tr::Element>, kColumnsO = kPanelColumns<typename Tr::Out>;
  static constexpr int kPanels = ceil_div(Tr::kHeadDim, kColumns), kPanelsV = ceil_div(Tr::kHeadDimV, kColumns);
  static constexpr int kPanelsO = ceil_div(Tr::kHeadDimV, kColumnsO);
  static constexpr int kQPanelBytes = Tr::kGroupRows * kPanelRowBytes;  // of Q and O, one group's rows
  static constexpr int kKvPanelBytes = Tr::kTileN * kPanelRowBytes;
  static constexpr int kQBytes = kPanels * kQPanelBytes, kOBytes = kPanelsO * kQPanelBytes;
  // While V's loader reads a vote, a group may already have voted on the two tiles after it.
  static constexpr int kVoteSlots = 4;
  static constexpr int kAnnouncements = 2;  // arrivals by which the thread that issues products says they are done
  static constexpr int kMostGroups = 2;
  static constexpr bool kTransposedV = false;  // tcgen05 reads 8-bit operands along either dimension
  static_assert(Tr::kGroupRows == kGroupThreads && Tr::kConsumers <= kMostGroups);
  static_assert(Tr::kSeparateO || (Tr::kStagesQ == 1 && kOBytes <= kQBytes));

  // Q of every slot and group. Then O, one group's at a time, unless each takes the place of its group's Q.
  alignas(1024) uint8_t qo[Tr::kStagesQ * Tr::kConsumers * kQBytes + (Tr::kSeparateO ? kOBytes : 0)];
  alignas(1024) uint8_t k[Tr::kStages][kPanels * kKvPanelBytes];
  alignas(1024) uint8_t v[Tr::kStagesV][kPanelsV * kKvPanelBytes];
  // From softmax to correction, as the bits of a float for each row: what O is to be multiplied with before the next
  // tile, and at the end. Of two groups even where there is one: codegen/tiles/sm100_prefill.py counts so.
  uint32_t acc_scale[kMostGroups][Tr::kGroupRows];
  uint32_t inverse[kMostGroups][Tr::kGroupRows];
  // `full`: the loader's bytes have landed. `empty`: the products that read them are done.
  uint64_t q_full[Tr::kStagesQ][Tr::kConsumers], q_empty[Tr::kStagesQ][Tr::kConsumers];
  uint64_t k_full[Tr::kStages], k_empty[Tr::kStages];
  uint64_t v_full[Tr::kStagesV], v_empty[Tr::kStagesV];
  uint64_t work_full[kWorkSlots], work_empty[kWorkSlots];
  // Of a group. Once a tile: S is there; `acc_scale` is; P is, O is rescaled and V's tail zeroed. Once an item: O is
  // done, if it has tiles or takes Q's place; `inverse` is there, and is read. And if products are not taken to be
  // ordered: P.V is done.
  uint64_t s_full[Tr::kConsumers], acc_scale_full[Tr::kConsumers], p_full[Tr::kConsumers];
  uint64_t o_full[Tr::kConsumers], inverse_full[Tr::kConsumers], inverse_empty[Tr::kConsumers];
  uint64_t pv_done[Tr::kConsumers];
  Vote votes[kVoteSlots][Tr::kConsumers];
  uint32_t skip_stats[Tr::kConsumers][2];  // stat kernels: the first of each group's tiles, and the one past the last
  uint32_t work[kWorkSlots][kWorkWords];
  uint32_t tmem_address;

  SKIM_DEVICE uint8_t* q(int slot, int group) { return qo + (slot * Tr::kConsumers + group) * kQBytes; }
  SKIM_DEVICE uint8_t* o(int group) {
    return Tr::kSeparateO ? qo + Tr::kStagesQ * Tr::kConsumers * kQBytes : q(0, group);
  }

  SKIM_DEVICE void init_barriers() {
    init_buffers();
    for (int group = 0; group < Tr::kConsumers; ++group) init_group(group);
    ptx::fence_mbarrier_init();
  }

 private:
  SKIM_DEVICE void init_buffers() {
    for (int i = 0; i < Tr::kStages; ++i) {
      ptx::mbarrier_init(&k_full[i], 1);
      ptx::mbarrier_init(&k_empty[i], kAnnouncements);
    }
    for (int i = 0; i < Tr::kStagesV; ++i) {
      ptx::mbarrier_init(&v_full[i], 1);
      ptx::mbarrier_init(&v_empty[i], kAnnouncements);
    }
    for (int i = 0; i < kWorkSlots; ++i) {
      ptx::mbarrier_init(&work_full[i], 1);
      ptx::mbarrier_init(&work_empty[i], Roles<Tr>::kReaders);
    }
  }

  SKIM_DEVICE void init_group(int group) {
    for (int slot = 0; slot < Tr::kStagesQ; ++slot) {
      ptx::mbarrier_init(&q_full[slot][group], 1);
      ptx::mbarrier_init(&q_empty[slot][group], Tr::kSeparateO ? kAnnouncements : 1);
    }
    ptx::mbarrier_init(&s_full[group], kAnnouncements);
    ptx::mbarrier_init(&acc_scale_full[group], kGroupWarps);
    ptx::mbarrier_init(&p_full[group], 2 * kGroupWarps);  // softmax and correction
    ptx::mbarrier_init(&o_full[group], kAnnouncements);
    ptx::mbarrier_init(&inverse_full[group], kGroupWarps);
    ptx::mbarrier_init(&inverse_empty[group], kGroupWarps);
    ptx::mbarrier_init(&pv_done[group], 1);
    for (int slot = 0; slot < kVoteSlots; ++slot) {
      ptx::mbarrier_init(&votes[slot][group].voted, kGroupWarps);
      ptx::st_shared(&votes[slot][group].kept, 0);
    }
  }
};

}  // namespace skimattn::sm100
