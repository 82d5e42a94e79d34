// The warps that feed a decode CTA: one draws work and tells everybody, one loads K, one V, one Q. All lanes of a warp
// load, each its boxes, since pages may be small.
#pragma once
#include <skimattn/core/decode_vote.cuh>

namespace skimattn {

// `Storage` is the architecture's shared memory.
template <class Tr, class Storage>
class DecodeProducer {
 public:
  static constexpr bool kSkips = Tr::kSkip != Skip::kDense, kCounts = Tr::kSkip == Skip::kStat;

  SKIM_DEVICE DecodeProducer(const Params& p, Storage& smem, int lane) : p_(p), smem_(smem), lane_(lane) {}

  // `kLoadsQueries`: this warp loads Q too.
  template <bool kLoadsQueries>
  SKIM_DEVICE void run_scheduler() {
    DecodeScheduler<Tr> scheduler(p_);
    const TileCounter counter(p_.work_counter);
    uint32_t phase = 0;
    for (int ticket = counter.first();;) {
      const DecodeItem item = scheduler.decode(p_, ticket, lane_);
      publish(item);
      if (kLoadsQueries && item.base.valid) load_next_q(item);
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
    for (DecodeItem item = receive(); item.base.valid; item = receive()) {
      load_keys(item);
      if (lane_ == 0) ptx::mbarrier_arrive(&smem_.keys_loaded);
      release_item();
    }
  }

  SKIM_DEVICE void run_values() {
    for (DecodeItem item = receive(); item.base.valid; item = receive()) {
      int visited = 0, skipped = 0;
      for (int leaf = item.lo; leaf < item.hi; ++leaf) {
        const Span tiles = item.tiles_of(leaf);
        for (int n = tiles.hi - 1; n >= tiles.lo; --n) {
          const bool kept = load_value_tile(item, n);
          ++visited;
          skipped += kept ? 0 : 1;
        }
      }
      if constexpr (kCounts) add_stats(item, visited, skipped);
      release_item();
    }
  }

  SKIM_DEVICE void run_queries() {
    for (DecodeItem item = receive(); item.base.valid; item = receive()) {
      load_next_q(item);
      release_item();
    }
  }

 private:
  SKIM_DEVICE DecodeItem receive() {
    ptx::mbarrier_wait_parity(&smem_.work_full[work_.slot], work_.phase);
    return read_decode_item(smem_, work_.slot);
  }
  SKIM_DEVICE void release_item() {
    ptx::warp_sync();
    if (lane_ == 0) ptx::mbarrier_arrive(&smem_.work_empty[work_.slot]);
    work_.advance();
  }

  SKIM_DEVICE void publish(const DecodeItem& item) {
    ptx::mbarrier_wait_parity(&smem_.work_empty[work_.slot], work_.phase ^ 1);
    ptx::warp_sync();  // an item without keys may be given back before a lane that lags has seen this phase
    if (lane_ == 0) {
      write_decode_item(smem_, work_.slot, item);
      ptx::mbarrier_arrive(&smem_.work_full[work_.slot]);
    }
    work_.advance();
  }

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
      if constexpr (kCounts) record(item, n, kept);
      return kept;
    }
  }

  // Query heads [0, count) of the kv head that have a row in the item's group, from `first` on, modulo their number.
  struct Heads {
    int first, count;
  };
  SKIM_DEVICE Heads heads_of(const DecodeItem& item) const {
    const int qheads_per_kv = p_.qheads_per_kv;
    const int rows = imin(Tr::kGroupRows, item.packed_rows(p_) - item.base.row0);
    return {item.base.row0 % qheads_per_kv, imin(rows, qheads_per_kv)};
  }
  SKIM_DEVICE int head_at(const DecodeItem& item, const Heads& heads, int i) const {
    const int qheads_per_kv = p_.qheads_per_kv;
    return item.base.head * qheads_per_kv + (heads.first + i) % qheads_per_kv;
  }

  SKIM_DEVICE void record(const DecodeItem& item, int n, bool kept) const {
    if (p_.skip_map == nullptr) return;
    const Heads heads = heads_of(item);
    for (int i = lane_; i < heads.count; i += kWarpThreads) {
      uint8_t* row = p_.skip_map + item.base.batch * p_.skip_map_stride_batch +
                     head_at(item, heads, i) * p_.skip_map_stride_head +
                     item.base.row0 / Tr::kGroupRows * p_.skip_map_stride_group;
      ptx::st_global(row + n, static_cast<uint8_t>(kept ? 1 : 2));
    }
  }

  SKIM_DEVICE void add_stats(const DecodeItem& item, int visited, int skipped) const {
    const Heads heads = heads_of(item);
    for (int i = lane_; i < heads.count; i += kWarpThreads) {
      const int64_t pair = static_cast<int64_t>(item.base.batch) * p_.stats_stride_batch +
                           head_at(item, heads, i) * p_.stats_stride_head;
      ptx::atomic_add(p_.stats + 2 * pair, static_cast<unsigned long long>(visited));
      ptx::atomic_add(p_.stats + 2 * pair + 1, static_cast<unsigned long long>(skipped));
    }
  }

  SKIM_DEVICE void load_next_q(const DecodeItem& item) {
    ptx::mbarrier_wait_parity(&smem_.q_empty, q_.phase ^ 1);
    load_q(item);
    q_.advance();
  }

  // Q's rows in packed order, a box of heads x rows after the other.
  SKIM_DEVICE void load_q(const DecodeItem& item) {
    const uint64_t policy = ptx::createpolicy_evict_first();
    const int qheads_per_kv = p_.qheads_per_kv, box_rows = p_.q_box_heads * p_.q_box_rows;
    const int rows = imin(Tr::kGroupRows, item.packed_rows(p_) - item.base.row0), boxes = ceil_div(rows, box_rows);
    const int outer = p_.cu_seqlens_q == nullptr ? item.base.batch : 0;
    if (lane_ == 0) {
      ptx::mbarrier_arrive_expect_tx(&smem_.q_full, boxes * box_rows * kPanelRowBytes * Storage::kPanelsQ);
    }
    ptx::warp_sync();
    for (int box = lane_; box < boxes; box += kWarpThreads) {
      const int packed = item.base.row0 + box * box_rows;
      const int head = item.base.head * qheads_per_kv + packed % qheads_per_kv;
      const int row = item.base.q_offset + packed / qheads_per_kv;
#pragma unroll
      for (int panel = 0; panel < Storage::kPanelsQ; ++panel) {
        ptx::tma_load(smem_.q() + panel * Storage::kQPanelBytes + box * box_rows * kPanelRowBytes, &p_.tma_q,
                      &smem_.q_full, policy, panel * kPanelColumns<typename Tr::ElementQ>, head, row, outer);
      }
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

  const Params& p_;
  Storage& smem_;
  const int lane_;
  PipelineState<1> q_;
  PipelineState<Tr::kStages> k_;   // run_keys
  PipelineState<Tr::kStagesV> v_;  // run_values
  PipelineState<kWorkSlots> work_;
  PipelineState<Storage::kVoteSlots> vote_;  // run_values
  uint32_t votes_ = 1;                       // number of this tile's vote; 0 is none
  KeptRun run_;
};

}  // namespace skimattn
