// What lives in shared memory, and who signals whom.
#pragma once
#include <skimattn/core/descale.cuh>
#include <skimattn/core/pipeline.cuh>

namespace skimattn::sm90 {

template <class Tr>
struct SharedStorage {
  // 8-bit values come transposed (core/transposed.cuh): a row holds the tile's keys of one column.
  static constexpr bool kTransposedV = kDescaled<typename Tr::Element>;
  static constexpr int kColumns = kPanelColumns<typename Tr::Element>, kColumnsO = kPanelColumns<typename Tr::Out>;
  static constexpr int kPanels = ceil_div(Tr::kHeadDim, kColumns), kPanelsV = ceil_div(Tr::kHeadDimV, kColumns);
  static constexpr int kPanelsO = ceil_div(Tr::kHeadDimV, kColumnsO);
  static constexpr int kQPanelBytes = Tr::kGroupRows * kPanelRowBytes;  // of Q and O, one warpgroup's rows
  static constexpr int kKvPanelBytes = Tr::kTileN * kPanelRowBytes;
  static constexpr int kQBytes = kPanels * kQPanelBytes, kOBytes = kPanelsO * kQPanelBytes;  // of one warpgroup
  static constexpr int kKBytes = kPanels * kKvPanelBytes;                                    // of one tile
  static constexpr int kVBytes = kTransposedV ? Tr::kHeadDimV * Tr::kTileN : kPanelsV * kKvPanelBytes;
  static_assert(Tr::kHeadDimV <= Tr::kHeadDim);
  static constexpr int kPlanesO = Tr::kSeparateO ? kOBytes / kQBytes : 0, kPlanes = Tr::kStagesQ + kPlanesO;
  static_assert(Tr::kSeparateO ? kOBytes % kQBytes == 0 : Tr::kStagesQ == 1 && kOBytes <= kQBytes);

  // The first kStagesQ planes hold Q; those behind them O, which shares Q's where there is no room for both.
  alignas(1024) uint8_t qo[kPlanes][Tr::kConsumers][kQBytes];
  alignas(1024) uint8_t k[Tr::kStages][kKBytes];
  alignas(1024) uint8_t v[Tr::kStagesV][kVBytes];
  // `full`: the producer's bytes have landed. `empty`: every reader is done; one arrival per reading warp.
  alignas(1024) uint64_t q_full[Tr::kStagesQ][Tr::kConsumers];
  uint64_t q_empty[Tr::kStagesQ][Tr::kConsumers];
  uint64_t k_full[Tr::kStages], k_empty[Tr::kStages];
  uint64_t v_full[Tr::kStagesV], v_empty[Tr::kStagesV];
  uint64_t work_full[kWorkSlots], work_empty[kWorkSlots];
  uint32_t work[kWorkSlots][kWorkWords];
  // Note: no group gets to the next vote in the same place before V's loader has read this one: before a group votes it
  // has waited for the V of the tile before.
  static constexpr int kVoteSlots = Tr::kStagesV;
  Vote votes[kVoteSlots][Tr::kConsumers];
  uint32_t skip_stats[Tr::kConsumers][2];  // stat kernels: the first of each group's tiles, and the one past the last

  SKIM_DEVICE uint8_t* q(int slot, int group) { return qo[slot][group]; }
  // Note: two ways to say it, since the second one gives kernels of 16 bits other machine code than was measured.
  SKIM_DEVICE uint8_t* o(int group) {
    if constexpr (kPlanesO <= 1) {
      return qo[kPlanes - 1][group];
    } else {
      return qo[Tr::kStagesQ][0] + group * kOBytes;
    }
  }

  // By all consumers: zeroes keys [first, last) of a tile of V.
  SKIM_DEVICE void clear_values(int slot, int first, int last) {
#pragma unroll 1
    for (int panel = 0; panel < kPanelsV; ++panel) {
      uint8_t* begin = v[slot] + panel * kKvPanelBytes;
#pragma unroll 1
      for (int at = imax(first, 0) * kPanelRowBytes + ptx::thread_index() * 16; at < last * kPanelRowBytes;
           at += Tr::kConsumers * kGroupThreads * 16) {
        ptx::st_shared_zero16(begin + at);
      }
    }
  }

  SKIM_DEVICE void init_barriers() {
    constexpr int kReaders = Tr::kConsumers * kGroupWarps;
    for (int i = 0; i < Tr::kConsumers; ++i) {
      for (int slot = 0; slot < Tr::kStagesQ; ++slot) {
        ptx::mbarrier_init(&q_full[slot][i], 1);
        ptx::mbarrier_init(&q_empty[slot][i], Tr::kSeparateO ? kGroupWarps : 1);
      }
    }
    for (int i = 0; i < Tr::kStages; ++i) {
      ptx::mbarrier_init(&k_full[i], 1);
      ptx::mbarrier_init(&k_empty[i], kReaders);
    }
    for (int i = 0; i < Tr::kStagesV; ++i) {
      ptx::mbarrier_init(&v_full[i], 1);
      ptx::mbarrier_init(&v_empty[i], kReaders);
      for (int group = 0; group < Tr::kConsumers; ++group) {
        ptx::mbarrier_init(&votes[i][group].voted, kGroupWarps);
        ptx::st_shared(&votes[i][group].kept, 0);
      }
    }
    for (int i = 0; i < kWorkSlots; ++i) {
      ptx::mbarrier_init(&work_full[i], 1);
      ptx::mbarrier_init(&work_empty[i], kReaders + 2);  // and the warps that load V and Q
    }
    ptx::fence_mbarrier_init();
  }
};

// Named barriers; 0 belongs to cta_sync.
template <class Tr>
struct NamedBarrier {
  static constexpr int kOrder = 1;                         // + group: whose turn it is to issue matrix products
  static constexpr int kGroup = kOrder + Tr::kConsumers;   // + group: one warpgroup, in the epilogue
  static constexpr int kUnseen = kGroup + Tr::kConsumers;  // all consumers
};

}  // namespace skimattn::sm90
