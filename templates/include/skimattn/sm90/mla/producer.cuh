// The warps that feed an MLA decode CTA: one draws work, tells everybody, and loads tiles of the latent cache; one
// loads Q; in stat kernels, one counts. All lanes of a warp load, each its boxes, since pages may be small.
#pragma once
#include <skimattn/core/decode_feeder.cuh>
#include <skimattn/core/decode_stats.cuh>
#include <skimattn/sm90/mla/storage.cuh>

namespace skimattn::sm90 {

template <class Tr>
class MlaProducer : DecodeFeeder<Tr, MlaStorage<Tr>> {
 public:
  using Storage = MlaStorage<Tr>;
  using Base = DecodeFeeder<Tr, Storage>;
  static constexpr bool kSkips = Tr::kSkip != Skip::kDense;
  static constexpr int kColumns = Storage::kColumns;

  using Base::Base;
  using Base::run_queries;

  SKIM_DEVICE void run_keys() {
    DecodeScheduler<Tr> scheduler(p_);
    const TileCounter counter(p_.work_counter);
    for (int ticket = counter.first();;) {
      // Drawn early: its latency hides behind this item's lookup and loads.
      const int next = lane_ == 0 ? counter.next() : 0;
      const DecodeItem item = scheduler.decode(p_, ticket, lane_);
      this->publish(item);
      if (item.base.valid) load_keys(item);
      if (!item.base.valid && lane_ == 0) counter.finish(next, scheduler.items());
      if (!item.base.valid) break;
      ticket = ptx::shfl(next, 0);
    }
  }

  SKIM_DEVICE void run_counts() {
    PipelineState<Storage::kVoteSlots> place;
    uint32_t votes = 0;
    for (DecodeItem item = this->receive(); item.base.valid; item = this->receive()) {
      int visited = 0, skipped = 0;
      for (int leaf = item.lo; leaf < item.hi; ++leaf) {
        const Span tiles = item.tiles_of(leaf);
        for (int n = tiles.hi - 1; n >= tiles.lo; --n) {
          DecodeVote& vote = smem_.votes[place.slot];
          ptx::mbarrier_wait_parity(&vote.voted, place.phase);
          const bool kept = ptx::ld_shared(&vote.kept) == ++votes;
          ptx::warp_sync();
          if (lane_ == 0) ptx::mbarrier_arrive(&vote.counted);
          place.advance();
          ++visited;
          skipped += kept ? 0 : 1;
          DecodeStats<Tr>::record(item, n, kept, lane_, kWarpThreads, p_);
        }
      }
      DecodeStats<Tr>::add(item, visited, skipped, lane_, kWarpThreads, p_);
      this->release_item();
    }
  }

 private:
  using Base::lane_;
  using Base::p_;
  using Base::smem_;

  SKIM_DEVICE void load_keys(const DecodeItem& item) {
    if constexpr (kSkips) {
      for (int n = item.start.hi - 1; n >= item.start.lo; --n) load_tile(item, n);
    }
    for (int leaf = item.lo; leaf < item.hi; ++leaf) {
      const Span tiles = item.tiles_of(leaf);
      for (int n = tiles.hi - 1; n >= tiles.lo; --n) load_tile(item, n);
    }
  }

  // One tile into the next slot, part by part as they become empty.
  SKIM_DEVICE void load_tile(const DecodeItem& item, int n) {
    const int key0 = n * Tr::kTileN;
    if constexpr (Tr::kPaged) {
      // Boxes past the last key are not loaded: their pages need not exist. What then lies in shared memory is masked
      // as K, and zeroed as V, by the leader.
      const int boxes = ceil_div(imin(Tr::kTileN, item.base.len_k - key0), p_.page_box_rows);
      const int key = key0 + lane_ * p_.page_box_rows;
      const int page = lane_ < boxes ? page_of(item, key) : 0;  // read while the slot is not empty
#pragma unroll
      for (int part = 0; part < Storage::kParts; ++part) {
        wait_and_expect(part, boxes * p_.page_box_rows);
        if (lane_ < boxes) load_box(part, lane_ * p_.page_box_rows, key % p_.page_size, item.base.head, page);
        for (int box = lane_ + kWarpThreads; box < boxes; box += kWarpThreads) {
          const int more = key0 + box * p_.page_box_rows;
          load_box(part, box * p_.page_box_rows, more % p_.page_size, item.base.head, page_of(item, more));
        }
      }
    } else {
      // One box, which is less than a tile where no request has more keys: what lies behind them is a neighbour's.
      const int outer = p_.cu_seqlens_k == nullptr ? item.base.batch : 0;
#pragma unroll
      for (int part = 0; part < Storage::kParts; ++part) {
        wait_and_expect(part, p_.kv_box_rows);
        if (lane_ == 0) load_box(part, 0, item.base.k_offset + key0, item.base.head, outer);
      }
    }
    ptx::warp_sync();
    kv_.advance();
  }

  SKIM_DEVICE int page_of(const DecodeItem& item, int key) const {
    const int32_t* pages = p_.page_table + static_cast<int64_t>(item.base.batch) * p_.page_table_stride;
    return ptx::ld_global(pages + key / p_.page_size);
  }

  SKIM_DEVICE void wait_and_expect(int part, int rows) const {
    ptx::mbarrier_wait_parity(&smem_.kv_empty[kv_.slot][part], kv_.phase ^ 1);
    if (lane_ == 0) {
      ptx::mbarrier_arrive_expect_tx(&smem_.kv_full[kv_.slot][part], rows * kPanelRowBytes * Storage::panels(part));
    }
    ptx::warp_sync();
  }

  // Rows of one part, to the slot's row `to` on.
  SKIM_DEVICE void load_box(int part, int to, int row, int kv_head, int outer) const {
    const uint64_t policy = ptx::createpolicy_evict_first();  // nobody reads it again, but for other row groups
#pragma unroll
    for (int i = 0; i < Storage::panels(part); ++i) {
      const int panel = Storage::first_panel(part) + i;
      ptx::tma_load(smem_.kv[kv_.slot] + panel * Storage::kKvPanelBytes + to * kPanelRowBytes, &p_.tma_k,
                    &smem_.kv_full[kv_.slot][part], policy, panel * kColumns, row, kv_head, outer);
    }
  }

  PipelineState<Tr::kStages> kv_;  // run_keys
};

}  // namespace skimattn::sm90
