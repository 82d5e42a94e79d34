// What lives in shared memory and in tensor memory of a decode CTA, which warp does what, and who signals whom.
#pragma once
#include <skimattn/core/decode_vote.cuh>
#include <skimattn/sm100/tmem.cuh>

namespace skimattn::sm100 {

// Warpgroups: softmax, correction, then four warps with a job each.
struct DecodeRoles {
  static constexpr int kSoftmax = 0, kCorrection = 1, kSingles = 2;
  static constexpr int kMma = 0, kKeys = 1, kValues = 2, kQueries = 3;  // warps; the last one draws the work too
  static constexpr int kReaders = 2 * kGroupWarps + 3;                  // of a work item: all but that one
};

// A product of 64 rows (m64) takes 16 of the 32 lanes that a warp reaches. Two threads of a warpgroup share each row:
// one has the first half of its columns, the other the second.
constexpr int kHalfWarp = kWarpThreads / 2;
SKIM_DEVICE int half_row(int thread) { return thread / kWarpThreads * kHalfWarp + thread % kHalfWarp; }
SKIM_DEVICE int half_of(int thread) { return thread % kWarpThreads / kHalfWarp; }

// Columns of tensor memory: two tiles of scores S, so that one is computed while the softmax works on the other; then
// the output O. P takes the place of the first columns of its S.
template <class Tr>
struct DecodeColumns {
  static constexpr int kScoreSlots = 2;
  static constexpr int kO = kScoreSlots * Tr::kTileN;
  static_assert(kO + Tr::kHeadDimV <= Tr::kTmemColumns);
  SKIM_DEVICE static constexpr int s(int slot) { return slot * Tr::kTileN; }
};

template <class Tr>
struct DecodeStorage {
  static constexpr int kColumns = kPanelColumns<typename Tr::Element>;
  static constexpr int kPanelsQ = ceil_div(Tr::kHeadDim, kColumns), kPanelsK = kPanelsQ;
  static constexpr int kPanelsV = ceil_div(Tr::kHeadDimV, kColumns);
  static constexpr int kQPanelBytes = Tr::kGroupRows * kPanelRowBytes;
  static constexpr int kKvPanelBytes = Tr::kTileN * kPanelRowBytes;
  static constexpr int kScoreSlots = DecodeColumns<Tr>::kScoreSlots;
  static constexpr int kAnnouncements = 2;  // arrivals by which the thread that issues products says they are done
  // Note: votes are read when the tile's product is issued, at most two tiles later; V's loader says when it has.
  static constexpr int kVoteSlots = 4;
  static_assert(Tr::kGroupRows == kGroupThreads / 2);

  alignas(1024) uint8_t queries[kPanelsQ * kQPanelBytes];
  alignas(1024) uint8_t k[Tr::kStages][kPanelsK * kKvPanelBytes];
  alignas(1024) uint8_t v[Tr::kStagesV][kPanelsV * kKvPanelBytes];
  // From softmax to correction, as the bits of floats for each row: what O is to be multiplied with before a tile's
  // product; after a leaf, its maximum (log2) and sum.
  alignas(1024) uint32_t told[2][Tr::kGroupRows];
  // `full`: the loader's bytes have landed. `empty`: the products that read them are done.
  alignas(1024) uint64_t q_full;
  uint64_t q_empty;
  uint64_t k_full[Tr::kStages], k_empty[Tr::kStages];
  uint64_t v_full[Tr::kStagesV], v_empty[Tr::kStagesV];
  uint64_t work_full[kWorkSlots], work_empty[kWorkSlots];
  uint64_t keys_loaded;  // K's loader has issued all of an item's loads
  uint64_t told_full, told_empty;
  // S is there; P is, or S has been looked at, and O is rescaled and V's tail zeroed; O holds the tile's product.
  uint64_t s_full[kScoreSlots], p_full[kScoreSlots], o_full;
  DecodeVote votes[kVoteSlots];
  uint32_t work[kWorkSlots][kDecodeWords];
  uint32_t tmem_address;

  SKIM_DEVICE uint8_t* q() { return queries; }

  SKIM_DEVICE void init_barriers() {
    ptx::mbarrier_init(&q_full, 1);
    ptx::mbarrier_init(&q_empty, kAnnouncements);
    init_ring(k_full, k_empty, kAnnouncements);
    init_ring(v_full, v_empty, 1);
    init_ring(work_full, work_empty, DecodeRoles::kReaders);
    ptx::mbarrier_init(&keys_loaded, 1);
    ptx::mbarrier_init(&told_full, kGroupWarps);
    ptx::mbarrier_init(&told_empty, kGroupWarps);
    for (int i = 0; i < kScoreSlots; ++i) {
      ptx::mbarrier_init(&s_full[i], kAnnouncements);
      ptx::mbarrier_init(&p_full[i], 2 * kGroupWarps);  // softmax and correction
    }
    ptx::mbarrier_init(&o_full, kAnnouncements);
    for (int i = 0; i < kVoteSlots; ++i) {
      ptx::mbarrier_init(&votes[i].voted, kGroupWarps);
      ptx::mbarrier_init(&votes[i].counted, 1);
      ptx::st_shared(&votes[i].kept, 0);
    }
    ptx::fence_mbarrier_init();
  }

 private:
  template <int kSlots>
  SKIM_DEVICE static void init_ring(uint64_t (&full)[kSlots], uint64_t (&empty)[kSlots], int readers) {
    for (int i = 0; i < kSlots; ++i) {
      ptx::mbarrier_init(&full[i], 1);
      ptx::mbarrier_init(&empty[i], readers);
    }
  }
};

// Follows V through its slots, for those who are told when a tile has been voted on: V's loader counts likewise.
template <class Tr>
class ValueTiles {
 public:
  struct Tile {
    bool kept, loaded;  // one that is not kept may have been loaded before the vote
    PipelineState<Tr::kStagesV> at;
  };
  SKIM_DEVICE Tile next(const DecodeStorage<Tr>& smem) {
    Tile tile = {true, true, v_};
    if constexpr (Tr::kSkip != Skip::kDense) {
      const bool early = run_.expects_kept();
      tile.kept = ptx::ld_shared(&smem.votes[tiles_ % DecodeStorage<Tr>::kVoteSlots].kept) == tiles_ + 1;
      tile.loaded = tile.kept || early;
      run_.add(tile.kept);
    }
    ++tiles_;
    if (tile.loaded) v_.advance();
    return tile;
  }
  // Parity of the phase in which O holds the last of them.
  SKIM_DEVICE uint32_t o_phase() const { return (tiles_ & 1) ^ 1; }

 private:
  PipelineState<Tr::kStagesV> v_;
  uint32_t tiles_ = 0;
  KeptRun run_;
};

// The next item, by threads that copy what they need of it.
template <class Storage>
SKIM_DEVICE DecodeItem receive_item(Storage& smem, PipelineState<kWorkSlots>& work) {
  ptx::mbarrier_wait_parity(&smem.work_full[work.slot], work.phase);
  return read_decode_item(smem, work.slot);
}

}  // namespace skimattn::sm100
