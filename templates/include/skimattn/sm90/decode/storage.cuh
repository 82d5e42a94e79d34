// What lives in shared memory of a decode CTA, and who signals whom.
#pragma once
#include <skimattn/core/decode_vote.cuh>

namespace skimattn::sm90 {

// Tiles in 16 bits, as products read them, where copies bring 8. Elsewhere they are read where copies put them.
template <int kBytesK, int kBytesV>
struct ConvertedTiles {
  alignas(1024) uint8_t converted_k[kBytesK];
  alignas(1024) uint8_t converted_v[kBytesV];
};
template <>
struct ConvertedTiles<0, 0> {};
template <int kBytes>
struct ConvertedQ {
  alignas(1024) uint8_t converted_q[kBytes];
};
template <>
struct ConvertedQ<0> {};

// Panels of a row, in memory that copies fill and in memory that products read, and which of the tensors are converted.
template <class Tr>
struct DecodePanels {
  template <class Element, int kHeadDim>
  static constexpr int kOf = ceil_div(kHeadDim, kPanelColumns<Element>);
  static constexpr int kQ = kOf<typename Tr::ElementQ, Tr::kHeadDim>, kK = kOf<typename Tr::ElementKv, Tr::kHeadDim>,
                       kV = kOf<typename Tr::ElementKv, Tr::kHeadDimV>;
  static constexpr int kProductsK = kOf<typename Tr::Element, Tr::kHeadDim>,
                       kProductsV = kOf<typename Tr::Element, Tr::kHeadDimV>;
  static constexpr bool kConvertsKv = sizeof(typename Tr::ElementKv::Storage) == 1;
  static constexpr bool kConvertsQ = sizeof(typename Tr::ElementQ::Storage) == 1;
  static constexpr int kQBytes = Tr::kGroupRows * kPanelRowBytes, kKvBytes = Tr::kTileN * kPanelRowBytes;  // of one
  using Tiles = ConvertedTiles<kConvertsKv ? kProductsK * kKvBytes : 0, kConvertsKv ? kProductsV * kKvBytes : 0>;
  using Q = ConvertedQ<kConvertsQ && !Tr::kQInRegisters ? kProductsK * kQBytes : 0>;
};

template <class Tr>
struct DecodeStorage : DecodePanels<Tr>::Tiles, DecodePanels<Tr>::Q {
  using Panels = DecodePanels<Tr>;
  static constexpr int kPanelsQ = Panels::kQ, kPanelsK = Panels::kK, kPanelsV = Panels::kV;
  static constexpr int kQPanelBytes = Panels::kQBytes, kKvPanelBytes = Panels::kKvBytes;
  static constexpr int kKBytes = kPanelsK * kKvPanelBytes, kVBytes = kPanelsV * kKvPanelBytes;  // of one tile
  // Note: a warp that keeps a tile does not wait for the others' votes. It gets as far ahead of them as K's slots let
  // it, and may not write in a place that they still read. Over 8-bit caches barriers keep warps together, but lanes of
  // one that only skips meet no earlier than in the step after: three places would do, and four are counted faster.
  static constexpr int kVoteSlots = Panels::kConvertsKv ? 4 : Tr::kStages + 1;

  static constexpr int kQBytes = kPanelsQ * kQPanelBytes, kMergedBytes = Tr::kGroupRows * Tr::kHeadDimV * 4;
  // Q has been read when the first leaf is merged, where registers hold it or it was converted.
  static constexpr bool kReadsQAtOnce = Tr::kQInRegisters || Panels::kConvertsQ;
  static constexpr int kMergedOffset = kReadsQAtOnce ? 0 : kQBytes;

  alignas(1024) uint8_t q_and_merged[imax(kQBytes, kMergedOffset + kMergedBytes)];
  alignas(1024) uint8_t k[Tr::kStages][kKBytes];
  alignas(1024) uint8_t v[Tr::kStagesV][kVBytes];
  // `full`: the producer's bytes have landed. `empty`: every reader is done, or has converted them; one arrival per
  // reading warp.
  alignas(1024) uint64_t q_full;
  uint64_t q_empty;
  uint64_t k_full[Tr::kStages], k_empty[Tr::kStages];
  uint64_t v_full[Tr::kStagesV], v_empty[Tr::kStagesV];
  uint64_t work_full[kWorkSlots], work_empty[kWorkSlots];
  uint64_t keys_loaded;  // K's loader has issued all of an item's loads
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
    ptx::mbarrier_init(&keys_loaded, 1);
    for (int i = 0; i < kWorkSlots; ++i) {
      ptx::mbarrier_init(&work_full[i], 1);
      ptx::mbarrier_init(&work_empty[i], kGroupWarps + 3);  // and the warps that load K, V and Q
    }
    ptx::fence_mbarrier_init();
  }
};

}  // namespace skimattn::sm90
