// The warps that feed a decode CTA: one draws work and tells everybody, one loads K, one V, one Q. All lanes of a warp
// load, each its boxes, since pages may be small.
#pragma once
#include <skimattn/core/decode_feeder.cuh>
#include <skimattn/core/decode_stats.cuh>
#include <skimattn/core/decode_vote.cuh>

namespace skimattn {

// `Storage` is the architecture's shared memory.
template <class Tr, class Storage>
class DecodeProducer : DecodeFeeder<Tr, Storage> {
 public:
  using Base = DecodeFeeder<Tr, Storage>;
  static constexpr bool kSkips = Tr::kSkip != Skip::kDense, kCounts = Tr::kSkip == Skip::kStat;

  using Base::Base;

  // `kLoadsQueries`: this warp loads Q too.
  template <bool kLoadsQueries>
  SKIM_DEVICE void run_scheduler() {
    DecodeScheduler<Tr> scheduler(p_);
    const TileCounter counter(p_.work_counter);
    uint32_t phase = 0;
    for (int ticket = counter.first();;) {
      const DecodeItem item = scheduler.decode(p_, ticket, lane_);
      this->publish(item);
      if (kLoadsQueries && item.base.valid) this->load_next_q(item);
      // Note: drawn no earlier than K's loader needs it. Items are few and long: one that waits here for its turn might
      // be at work elsewhere.
      if (item.base.valid) ptx::mbarrier_wait_parity(&smem_.keys_loaded, phase);
      phase ^= 1;
      const int next = lane_ == 0 ? counter.next() : 0;
      if (!item.base.valid) {
        if (lane_ == 0) counter.finish(next, scheduler.items());
        break;
      }
      ticket = ptx::shfl(next, 0);
    }
  }

  SKIM_DEVICE void run_keys() {
    for (DecodeItem item = this->receive(); item.base.valid; item = this->receive()) {
      load_keys(item);
      if (lane_ == 0) ptx::mbarrier_arrive(&smem_.keys_loaded);
      this->release_item();
    }
  }

  SKIM_DEVICE void run_values() {
    for (DecodeItem item = this->receive(); item.base.valid; item = this->receive()) {
      int visited = 0, skipped = 0;
      for (int leaf = item.lo; leaf < item.hi; ++leaf) {
        const Span tiles = item.tiles_of(leaf);
        for (int n = tiles.hi - 1; n >= tiles.lo; --n) {
          const bool kept = load_value_tile(item, n);
          ++visited;
          skipped += kept ? 0 : 1;
        }
      }
      if constexpr (kCounts) DecodeStats<Tr>::add(item, visited, skipped, lane_, kWarpThreads, p_);
      this->release_item();
    }
  }

  using Base::run_queries;

 private:
  using Base::lane_;
  using Base::p_;
  using Base::smem_;

  SKIM_DEVICE void load_keys(const DecodeItem& item) {
    if constexpr (kSkips) {
      for (int n = item.start.hi - 1; n >= item.start.lo; --n) load_k(item, n, ptx::createpolicy_evict_last());
    }
    for (int leaf = item.lo; leaf < item.hi; ++leaf) {
      const Span tiles = item.tiles_of(leaf);
      for (int n = tiles.hi - 1; n >= tiles.lo; --n) load_k(item, n, ptx::createpolicy_evict_first());
    }
  }

  // Start tiles are read again by the request's other parts; the rest by nobody but other row groups.
  SKIM_DEVICE void load_k(const DecodeItem& item, int n, uint64_t policy) {
    load_tile<Storage::kPanelsK>(smem_.k[k_.slot], p_.tma_k, smem_.k_full[k_.slot], smem_.k_empty[k_.slot],
                                 k_.phase ^ 1, item, n, policy);
    k_.advance();
  }
  SKIM_DEVICE void load_v(const DecodeItem& item, int n) {
    load_tile<Storage::kPanelsV>(smem_.v[v_.slot], p_.tma_v, smem_.v_full[v_.slot], smem_.v_empty[v_.slot],
                                 v_.phase ^ 1, item, n, ptx::createpolicy_evict_first());
    v_.advance();
  }

  // Loads V's tile unless it is skipped; whether it was kept.
  // Note: a skipped tile takes no slot, unless it was loaded before the vote.
  SKIM_DEVICE bool load_value_tile(const DecodeItem& item, int n) {
    if constexpr (!kSkips) {
      load_v(item, n);
      return true;
    } else {
      const bool early = run_.expects_kept();
      if (early) load_v(item, n);
      DecodeVote& vote = smem_.votes[vote_.slot];
      ptx::mbarrier_wait_parity(&vote.voted, vote_.phase);
      const bool kept = ptx::ld_shared(&vote.kept) == votes_;
      ptx::warp_sync();
      if (lane_ == 0) ptx::mbarrier_arrive(&vote.counted);
      vote_.advance();
      ++votes_;
      run_.add(kept);
      if (kept && !early) load_v(item, n);
      if constexpr (kCounts) DecodeStats<Tr>::record(item, n, kept, lane_, kWarpThreads, p_);
      return kept;
    }
  }

  // One tile of K or V into a slot, once it is empty.
  template <int kPanels>
  SKIM_DEVICE void load_tile(uint8_t* to, const TensorMap& map, uint64_t& full, uint64_t& empty, uint32_t phase,
                             const DecodeItem& item, int n, uint64_t policy) {
    const int key0 = n * Tr::kTileN;
    if constexpr (Tr::kPaged) {
      // Boxes past the last key are not loaded: their pages need not exist. What then lies in shared memory is
      // masked (K) or zeroed (V) by the consumer.
      const int boxes = ceil_div(imin(Tr::kTileN, item.base.len_k - key0), p_.page_box_rows);
      const int32_t* pages = p_.page_table + static_cast<int64_t>(item.base.batch) * p_.page_table_stride;
      int key = key0 + lane_ * p_.page_box_rows;
      int page = lane_ < boxes ? ptx::ld_global(pages + key / p_.page_size) : 0;  // read while the slot is not empty
      wait_and_expect(full, empty, phase, boxes * p_.page_box_rows * kPanelRowBytes * kPanels);
      for (int box = lane_; box < boxes; box += kWarpThreads) {
        if (box != lane_) {
          key = key0 + box * p_.page_box_rows;
          page = ptx::ld_global(pages + key / p_.page_size);
        }
        load_panels<kPanels>(to + box * p_.page_box_rows * kPanelRowBytes, map, full, policy, key % p_.page_size,
                             item.base.head, page);
      }
    } else {
      // One box, which is less than a tile where no request has more keys: what lies behind them is a neighbour's.
      wait_and_expect(full, empty, phase, p_.kv_box_rows * kPanelRowBytes * kPanels);
      const int outer = p_.cu_seqlens_k == nullptr ? item.base.batch : 0;
      if (lane_ == 0) load_panels<kPanels>(to, map, full, policy, item.base.k_offset + key0, item.base.head, outer);
    }
    ptx::warp_sync();
  }

  SKIM_DEVICE void wait_and_expect(uint64_t& full, uint64_t& empty, uint32_t phase, int bytes) const {
    ptx::mbarrier_wait_parity(&empty, phase);
    if (lane_ == 0) ptx::mbarrier_arrive_expect_tx(&full, bytes);
    ptx::warp_sync();
  }

  template <int kPanels>
  SKIM_DEVICE void load_panels(uint8_t* to, const TensorMap& map, uint64_t& full, uint64_t policy, int row, int kv_head,
                               int outer) {
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
      ptx::tma_load(to + panel * Storage::kKvPanelBytes, &map, &full, policy,
                    panel * kPanelColumns<typename Tr::ElementKv>, row, kv_head, outer);
    }
  }

  PipelineState<Tr::kStages> k_;             // run_keys
  PipelineState<Tr::kStagesV> v_;            // run_values
  PipelineState<Storage::kVoteSlots> vote_;  // run_values
  uint32_t votes_ = 1;                       // number of this tile's vote; 0 is none
  KeptRun run_;
};

}  // namespace skimattn
