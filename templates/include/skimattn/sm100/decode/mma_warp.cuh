// The warp that issues a decode CTA's products: one lane. S = Q.K^T of a tile is issued before P.V of the tile before
// it, so that the softmax never waits for it, and K for no vote.
#pragma once
#include <skimattn/sm100/decode/storage.cuh>
#include <skimattn/sm100/descriptor.cuh>

namespace skimattn::sm100 {

template <class Tr>
class DecodeMma {
 public:
  using Storage = DecodeStorage<Tr>;
  using Element = typename Tr::Element;
  using Columns = DecodeColumns<Tr>;
  static constexpr int kStepBytes = 32;                                             // of a row, along K, in one step
  static constexpr int kStepKeys = kStepBytes / sizeof(typename Element::Storage);  // elements of that
  static constexpr uint32_t kQk = instruction_descriptor<Element, Tr::kTileN, false, Tr::kGroupRows>();
  static constexpr uint32_t kPv = instruction_descriptor<Element, Tr::kHeadDimV, true, Tr::kGroupRows>();

  SKIM_DEVICE explicit DecodeMma(Storage& smem) : smem_(smem), tmem_(ptx::ld_shared(&smem.tmem_address)) {}

  SKIM_DEVICE void run() {
    for (DecodeItem item = receive(); item.base.valid; item = receive()) {
      left_ = item.key_tiles();
      wait_tmem(&smem_.q_full, q_.phase);
      if (left_ == 0) arrive_at_once(&smem_.q_empty);
      issue_scores();
#pragma unroll 1
      for (int n = item.start.lo; n < item.start.hi; ++n) {
        issue_scores();
        await_softmax();
      }
#pragma unroll 1
      for (int leaf = item.lo; leaf < item.hi; ++leaf) multiply_leaf(item.tiles_of(leaf));
      q_.advance();
    }
    outlive_commits();
  }

 private:
  SKIM_DEVICE DecodeItem receive() {
    const DecodeItem item = receive_item(smem_, work_);
    ptx::mbarrier_arrive(&smem_.work_empty[work_.slot]);
    work_.advance();
    return item;
  }

  // Arrives when all products so far are done.
  // Note: twice. The ISA says what a commit tells of products, but not that it passes on what else this thread knows:
  // that a copy has landed, that a word of shared memory has been read. An arrival of the thread's own does.
  SKIM_DEVICE void announce(uint64_t* barrier) {
    ptx::mbarrier_arrive(barrier);
    ptx::tcgen05_commit(barrier);
  }
  // The same where no product matters.
  SKIM_DEVICE void arrive_at_once(uint64_t* barrier) {
    for (int i = 0; i < Storage::kAnnouncements; ++i) ptx::mbarrier_arrive(barrier);
  }

  // Waits for all of them before the CTA may end, on a barrier for which the softmax waits no more.
  SKIM_DEVICE void outlive_commits() {
    const int slot = issued_ % Columns::kScoreSlots;
    announce(&smem_.s_full[slot]);
    ptx::mbarrier_wait_parity(&smem_.s_full[slot], issued_ / Columns::kScoreSlots & 1);
  }

  // S of the item's next tile, if there is one. Its place was that of the tile before the last, whose P.V is done.
  SKIM_DEVICE void issue_scores() {
    if (left_ == 0) return;
    constexpr int kSteps = Tr::kHeadDim / kStepKeys, kPanelSteps = kPanelRowBytes / kStepBytes;
    wait_tmem(&smem_.k_full[k_.slot], k_.phase);
    const int slot = issued_++ % Columns::kScoreSlots;
    const uint64_t q = k_major(smem_.q()), k = k_major(smem_.k[k_.slot]);
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int panel = i / kPanelSteps, inside = i % kPanelSteps * kStepBytes;
      ptx::tcgen05_mma_ss<Element>(tmem_ + Columns::s(slot), advance(q, panel * Storage::kQPanelBytes + inside),
                                   advance(k, panel * Storage::kKvPanelBytes + inside), kQk, i > 0);
    }
    announce(&smem_.s_full[slot]);
    announce(&smem_.k_empty[k_.slot]);
    if (--left_ == 0) announce(&smem_.q_empty);
    k_.advance();
  }

  // Until the softmax is done with the next tile; where its P is.
  SKIM_DEVICE int await_softmax() {
    const int slot = awaited_ % Columns::kScoreSlots;
    wait_tmem(&smem_.p_full[slot], awaited_ / Columns::kScoreSlots & 1);
    ++awaited_;
    return Columns::s(slot);
  }

  SKIM_DEVICE void multiply_leaf(const Span& tiles) {
    bool started = false;  // whether O holds anything of the leaf
#pragma unroll 1
    for (int n = tiles.lo; n < tiles.hi; ++n) {
      issue_scores();
      multiply_values(started);
    }
  }

  // P.V of the next tile, unless it is skipped.
  // Note: products are waited for, so nothing rests on the order in which they execute: P has been read before S is
  // written over it. There is time for it, since the next tile's scores are there.
  SKIM_DEVICE void multiply_values(bool& started) {
    const int p = await_softmax();
    const auto tile = values_.next(smem_);
    if (tile.loaded) wait_tmem(&smem_.v_full[tile.at.slot], tile.at.phase);
    if (tile.kept) {
      issue_values(p, tile.at.slot, started);
      started = true;
      announce(&smem_.o_full);
    } else {
      arrive_at_once(&smem_.o_full);
    }
    wait_tmem(&smem_.o_full, values_.o_phase());
    if (tile.loaded) ptx::mbarrier_arrive(&smem_.v_empty[tile.at.slot]);
  }

  SKIM_DEVICE void issue_values(int p, int slot, bool started) {
    constexpr int kStepColumns = kStepBytes / 4;  // of P in tensor memory
    const uint64_t v = mn_major(smem_.v[slot], Storage::kKvPanelBytes);
#pragma unroll
    for (int i = 0; i < Tr::kTileN / kStepKeys; ++i) {
      ptx::tcgen05_mma_ts<Element>(tmem_ + Columns::kO, tmem_ + p + i * kStepColumns,
                                   advance(v, i * kStepKeys * kPanelRowBytes), kPv, started || i > 0);
    }
  }

  Storage& smem_;
  const uint32_t tmem_;
  PipelineState<1> q_;
  PipelineState<Tr::kStages> k_;
  PipelineState<kWorkSlots> work_;
  ValueTiles<Tr> values_;
  uint32_t issued_ = 0, awaited_ = 0;  // tiles over all items: whose scores were issued, which the softmax is done with
  int left_ = 0;                       // of the item: whose scores are still to be issued
};

}  // namespace skimattn::sm100
