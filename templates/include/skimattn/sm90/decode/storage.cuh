// What lives in shared memory of a decode CTA, and who signals whom.
#pragma once
#include <skimattn/core/decode_work.cuh>

namespace skimattn::sm90 {

// What the group decides about a tile. All warps arrive on `voted`, then V's loader on `counted`; `kept` is the number
// of the last vote, counted over all tiles, in which a warp kept its tile.
struct DecodeVote {
  uint64_t voted, counted;
  uint32_t kept, unused;
};

template <class Tr>
struct DecodeStorage {
  static constexpr int kColumns = kPanelColumns<typename Tr::Element>;
  static constexpr int kPanels = Tr::kHeadDim / kColumns, kPanelsV = Tr::kHeadDimV / kColumns;
  static constexpr int kQPanelBytes = Tr::kGroupRows * kPanelRowBytes;
  static constexpr int kKvPanelBytes = Tr::kTileN * kPanelRowBytes;
  static constexpr int kKBytes = kPanels * kKvPanelBytes, kVBytes = kPanelsV * kKvPanelBytes;  // of one tile
  // Note: a warp that keeps a tile does not wait for the others' votes. It gets as far ahead of them as K's slots let
  // it, and may not write in a place that they still read.
  static constexpr int kVoteSlots = Tr::kStages + 1;

  static constexpr int kQBytes = kPanels * kQPanelBytes, kMergedBytes = Tr::kGroupRows * Tr::kHeadDimV * 4;
  // Q has been read when the first leaf is merged, where registers hold it.
  static constexpr int kMergedOffset = Tr::kQInRegisters ? 0 : kQBytes;

  alignas(1024) uint8_t q_and_merged[imax(kQBytes, kMergedOffset + kMergedBytes)];
  alignas(1024) uint8_t k[Tr::kStages][kKBytes];
  alignas(1024) uint8_t v[Tr::kStagesV][kVBytes];
  // `full`: the producer's bytes have landed. `empty`: every reader is done; one arrival per reading warp.
  alignas(1024) uint64_t q_full;
  uint64_t q_empty;
  uint64_t k_full[Tr::kStages], k_empty[Tr::kStages];
  uint64_t v_full[Tr::kStagesV], v_empty[Tr::kStagesV];
  uint64_t work_full[kWorkSlots], work_empty[kWorkSlots];
  uint32_t work[kWorkSlots][kDecodeWords];
  DecodeVote votes[kVoteSlots];

  SKIM_DEVICE uint8_t* q() { return q_and_merged; }
  // 16 bytes of `chunk`, which this thread alone reads and writes.
  SKIM_DEVICE uint8_t* merged(int chunk, int thread) {
    return q_and_merged + kMergedOffset + (chunk * kGroupThreads + thread) * 16;
  }

  SKIM_DEVICE void init_barriers() {
    ptx::mbarrier_init(&q_full, 1);
    ptx::mbarrier_init(&q_empty, kGroupWarps);
    for (int i = 0; i < Tr::kStages; ++i) {
      ptx::mbarrier_init(&k_full[i], 1);
      ptx::mbarrier_init(&k_empty[i], kGroupWarps);
    }
    for (int i = 0; i < Tr::kStagesV; ++i) {
      ptx::mbarrier_init(&v_full[i], 1);
      ptx::mbarrier_init(&v_empty[i], kGroupWarps);
    }
    for (int i = 0; i < kVoteSlots; ++i) {
      ptx::mbarrier_init(&votes[i].voted, kGroupWarps);
      ptx::mbarrier_init(&votes[i].counted, 1);
      ptx::st_shared(&votes[i].kept, 0);
    }
    for (int i = 0; i < kWorkSlots; ++i) {
      ptx::mbarrier_init(&work_full[i], 1);
      ptx::mbarrier_init(&work_empty[i], kGroupWarps + 2);  // and the warps that load V and Q
    }
    ptx::fence_mbarrier_init();
  }
};

// Whether V's loader takes a tile to be kept and loads before it knows: after so many kept ones in a row, and at first.
// Waiting for every vote would leave memory idle where nothing is skipped; guessing too early loads what is skipped.
// Note: consumer and loader both count, and must come to the same answer.
class KeptRun {
 public:
  static constexpr int kEnough = 4;
  SKIM_DEVICE bool expects_kept() const { return length_ >= kEnough; }
  SKIM_DEVICE void add(bool kept) { length_ = kept ? imin(length_ + 1, kEnough) : 0; }

 private:
  int length_ = kEnough;
};

}  // namespace skimattn::sm90
