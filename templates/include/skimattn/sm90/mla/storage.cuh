// What lives in shared memory of an MLA decode CTA, and who signals whom.
#pragma once
#include <skimattn/sm90/decode/storage.cuh>

namespace skimattn::sm90 {

// A tile of the latent cache is K (all its columns) and V (the first ones) at once. It lies in a slot in three parts,
// which arrive, and are handed back, one by one: the columns that are K alone, and V's in two halves, one for each
// warpgroup.
template <class Tr>
struct MlaStorage {
  static constexpr int kColumns = kPanelColumns<typename Tr::Element>;
  static constexpr int kPanels = Tr::kHeadDim / kColumns, kPanelsQ = kPanels, kPanelsV = Tr::kHeadDimV / kColumns;
  static constexpr int kQPanelBytes = Tr::kGroupRows * kPanelRowBytes;
  static constexpr int kKvPanelBytes = Tr::kTileN * kPanelRowBytes;
  static constexpr int kKvBytes = kPanels * kKvPanelBytes;            // of one tile
  static constexpr int kParts = 3, kRest = 0, kLeft = 1, kRight = 2;  // in the order in which they are loaded
  static constexpr int kCounters = Tr::kSkip == Skip::kStat ? 1 : 0;  // warps that count
  static constexpr int kVoteSlots = Tr::kStages + 1;                  // see DecodeStorage
  static_assert(kPanelsV % 2 == 0);

  SKIM_DEVICE static constexpr int first_panel(int part) {
    return part == kRest ? kPanelsV : part == kLeft ? 0 : kPanelsV / 2;
  }
  SKIM_DEVICE static constexpr int panels(int part) { return part == kRest ? kPanels - kPanelsV : kPanelsV / 2; }

  alignas(1024) uint8_t queries[kPanelsQ * kQPanelBytes];
  alignas(1024) uint8_t kv[Tr::kStages][kKvBytes];
  alignas(1024) uint8_t p[Tr::kTileN / 8][Tr::kGroupRows][16];  // see k_major_chunks
  // What the leader tells of each row. Of a kept tile: what older output counts; at the end of a leaf: its RowMerge.
  float told[Tr::kGroupRows][4];
  float rows[Tr::kGroupRows][4];   // the leader's: maximum and sum of the leaves so far, maximum that leaves start from
  uint64_t told_full, told_empty;  // P lies there too, if it is about a tile
  // `full`: the producer's bytes have landed. `empty`: every reader is done; one arrival per reading warp.
  uint64_t q_full, q_empty;
  uint64_t kv_full[Tr::kStages][kParts], kv_empty[Tr::kStages][kParts];
  uint64_t work_full[kWorkSlots], work_empty[kWorkSlots];
  alignas(16) uint32_t work[kWorkSlots][kDecodeWords];
  DecodeVote votes[kVoteSlots];

  SKIM_DEVICE uint8_t* q() { return queries; }

  SKIM_DEVICE void init_barriers() {
    ptx::mbarrier_init(&q_full, 1);
    ptx::mbarrier_init(&q_empty, kGroupWarps);
    ptx::mbarrier_init(&told_full, kGroupWarps);
    ptx::mbarrier_init(&told_empty, kGroupWarps);
    for (int i = 0; i < Tr::kStages; ++i) {
      for (int part = 0; part < kParts; ++part) ptx::mbarrier_init(&kv_full[i][part], 1);
      ptx::mbarrier_init(&kv_empty[i][kRest], kGroupWarps);
      ptx::mbarrier_init(&kv_empty[i][kLeft], kGroupWarps);
      ptx::mbarrier_init(&kv_empty[i][kRight], 2 * kGroupWarps);  // the leader reads it as K, the follower as V
    }
    for (int i = 0; i < kVoteSlots; ++i) {
      ptx::mbarrier_init(&votes[i].voted, kGroupWarps);
      ptx::mbarrier_init(&votes[i].counted, kGroupWarps + kCounters);  // who has heard it
      ptx::st_shared(&votes[i].kept, 0);
    }
    for (int i = 0; i < kWorkSlots; ++i) {
      ptx::mbarrier_init(&work_full[i], 1);
      ptx::mbarrier_init(&work_empty[i], 2 * kGroupWarps + 1 + kCounters);  // and the warp that loads Q
    }
    ptx::fence_mbarrier_init();
  }
};

}  // namespace skimattn::sm90
