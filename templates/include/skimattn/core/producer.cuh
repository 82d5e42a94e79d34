// The warps that feed a CTA: one draws work, tells everybody, and loads K; one loads V, one Q. Each runs ahead as far
// as its own buffers allow, and none has to keep another's place in the few registers it has.
#pragma once
#include <skimattn/core/key_tiles.cuh>
#include <skimattn/core/skip_stats.cuh>
#include <skimattn/core/transposed.cuh>

namespace skimattn {

// By one thread, before the roles part.
template <class Storage>
SKIM_DEVICE void prefetch_tensormaps(const Params& p) {
  ptx::prefetch_tensormap(&p.tma_q);
  ptx::prefetch_tensormap(&p.tma_k);
  ptx::prefetch_tensormap(Storage::kTransposedV ? &p.tma_vt : &p.tma_v);
  ptx::prefetch_tensormap(&p.tma_o);
}

// `Storage` is the architecture's shared memory.
template <class Tr, class Storage>
class Producer {
 public:
  static constexpr int kColumns = kPanelColumns<typename Tr::Element>;
  // Pages may be small: then all lanes load, each its boxes. Elsewhere a tile is one box, and one lane all there is.
  static constexpr bool kKeysByWarp = Tr::kPaged, kValuesByWarp = Tr::kPaged && !Storage::kTransposedV;

  SKIM_DEVICE Producer(const Params& p, Storage& smem, int lane) : p_(p), smem_(smem), lane_(lane) {}

  // The scheduler and loader of K: a whole warp.
  SKIM_DEVICE void run_keys() {
    TileScheduler<Tr::kTileM, Storage::kTransposedV> scheduler(p_);
    const TileCounter counter(p_.work_counter);
    for (int ticket = counter.first();;) {
      // Drawn early: its latency hides behind this item's lookup and loads.
      const int next = lane_ == 0 ? counter.next() : 0;
      const WorkItem item = scheduler.decode(p_, ticket);
      if (lane_ == 0) publish(item);
      if (kKeysByWarp || lane_ == 0) {
        const TileRange range = cta_range<Tr>(item, p_);
        const Keys keys = keys_of(item);
#pragma unroll 1  // a copy would only cost registers
        for (int i = 0; i < range.last - range.first; ++i) {
          load_k(keys, visited_tile<Tr::kSinkFirst>(range.first, range.last, i));
        }
        work_.advance();
        if (lane_ == 0 && !item.valid) counter.finish(next, scheduler.items(p_));
      }
      if (!item.valid) break;
      ptx::warp_sync();
      ticket = ptx::shfl(next, 0);
    }
  }

  // One lane, or all of them.
  SKIM_DEVICE void run_values() {
    for (WorkItem item = receive(); item.valid; item = receive()) {
      const TileRange range = cta_range<Tr>(item, p_);
      const Keys keys = keys_of(item);
      SkipStats<Tr, Storage> skip_stats(p_, smem_, item, lane_);
      bool expected = true;  // a first tile is kept, and one after a kept one most often
#pragma unroll 1
      for (int i = 0; i < range.last - range.first; ++i) {
        const int n = visited_tile<Tr::kSinkFirst>(range.first, range.last, i);
        if constexpr (Tr::kSkip == Skip::kDense) {
          load_v(keys, n, true);
        } else {
          uint32_t keeping = expected ? 0 : keeping_groups();
          load_v(keys, n, expected || keeping != 0);
          if (expected) keeping = keeping_groups();
          skip_stats.record(n, keeping, [&] { return this_item(); });
          expected = keeping != 0;
          vote_.advance();
          ++votes_;
        }
      }
      skip_stats.add(this_item());
      release_item<kValuesByWarp>();
    }
  }

  // One lane. Items without a visible key get their Q too: the consumers count phases.
  SKIM_DEVICE void run_queries() {
    PipelineState<Tr::kStagesQ> q;
    for (WorkItem item = receive(); item.valid; item = receive()) {
      load_q(item, q);
      release_item<false>();
      q.advance();
    }
  }

 private:
  // The next item; to be given back by release_item().
  SKIM_DEVICE WorkItem receive() {
    ptx::mbarrier_wait_parity(&smem_.work_full[work_.slot], work_.phase);
    return this_item();
  }
  // Note: what is needed rarely is read again from shared memory: a loader has few registers.
  SKIM_DEVICE WorkItem this_item() const { return read_work(smem_, work_.slot); }
  template <bool kByWarp>
  SKIM_DEVICE void release_item() {
    if constexpr (kByWarp) ptx::warp_sync();  // a lane that lags may not have read it yet
    if (lane_ == 0) ptx::mbarrier_arrive(&smem_.work_empty[work_.slot]);
    work_.advance();
  }

  SKIM_DEVICE Keys keys_of(const WorkItem& item) const {
    return {item.head / (p_.heads_q / p_.heads_kv), item.batch, item.k_offset, item.len_k};
  }

  SKIM_DEVICE void publish(const WorkItem& item) {
    ptx::mbarrier_wait_parity(&smem_.work_empty[work_.slot], work_.phase ^ 1);
    const int words[kWorkWords] = {item.valid, item.batch, item.head,     item.row0,
                                   item.len_q, item.len_k, item.q_offset, item.k_offset};
#pragma unroll
    for (int i = 0; i < kWorkWords; ++i) ptx::st_shared(&smem_.work[work_.slot][i], words[i]);
    ptx::mbarrier_arrive(&smem_.work_full[work_.slot]);
  }

  SKIM_DEVICE void load_q(const WorkItem& item, PipelineState<Tr::kStagesQ> q) {
    const uint64_t policy = ptx::createpolicy_evict_first();
    const int row0 = item.q_offset + item.row0, outer = p_.cu_seqlens_q == nullptr ? item.batch : 0;
#pragma unroll
    for (int group = 0; group < Tr::kConsumers; ++group) {
      uint64_t* full = &smem_.q_full[q.slot][group];
      ptx::mbarrier_wait_parity(&smem_.q_empty[q.slot][group], q.phase ^ 1);
      if (item.row0 + group * Tr::kGroupRows >= item.len_q) {
        ptx::mbarrier_arrive(full);  // all its rows are a neighbour's or nobody's: whatever lies there, none is stored
        continue;
      }
      ptx::mbarrier_arrive_expect_tx(full, Storage::kPanels * Storage::kQPanelBytes);
#pragma unroll
      for (int panel = 0; panel < Storage::kPanels; ++panel) {
        ptx::tma_load(smem_.q(q.slot, group) + panel * Storage::kQPanelBytes, &p_.tma_q, full, policy, panel * kColumns,
                      row0 + group * Tr::kGroupRows, item.head, outer);
      }
    }
  }

  SKIM_DEVICE void load_k(const Keys& keys, int tile) {
    load_tile<Storage::kPanels>(smem_.k[k_.slot], p_.tma_k, &smem_.k_full[k_.slot], &smem_.k_empty[k_.slot],
                                k_.phase ^ 1, keys, tile);
    k_.advance();
  }

  // A tile that is expected to be kept is loaded at once, since waiting for the vote would delay it. Otherwise the vote
  // is awaited, and most often spares the load.
  SKIM_DEVICE void load_v(const Keys& keys, int tile, bool wanted) {
    uint64_t *full = &smem_.v_full[v_.slot], *empty = &smem_.v_empty[v_.slot];
    if (!wanted) {
      ptx::mbarrier_wait_parity(empty, v_.phase ^ 1);
      // Else a lane that lags might miss this phase: once the slot is announced, its readers give it back.
      if constexpr (kValuesByWarp) ptx::warp_sync();
      if (lane_ == 0) ptx::mbarrier_arrive(full);  // nobody will read the slot, but everybody counts its phases
    } else if constexpr (Storage::kTransposedV) {
      ptx::mbarrier_wait_parity(empty, v_.phase ^ 1);
      load_transposed<Tr>(smem_.v[v_.slot], full, keys, tile, p_);
    } else {
      load_tile<Storage::kPanelsV>(smem_.v[v_.slot], p_.tma_v, full, empty, v_.phase ^ 1, keys, tile);
    }
    v_.advance();
  }

  // One tile into a slot, once that is empty.
  template <int kPanels>
  SKIM_DEVICE void load_tile(uint8_t* to, const TensorMap& map, uint64_t* full, uint64_t* empty, uint32_t phase,
                             const Keys& keys, int tile) {
    if constexpr (Tr::kPaged) {
      PagedTile<Tr> boxes(keys, tile, lane_, p_);
      ptx::mbarrier_wait_parity(empty, phase);
      boxes.template load<kPanels>(to, map, full, keys.head, lane_, p_);
    } else {
      ptx::mbarrier_wait_parity(empty, phase);
      load_key_tile<Tr, kPanels>(to, map, full, keys, tile, p_);
    }
  }

  // Waits until all groups have voted on this tile; a bit for each that keeps it.
  SKIM_DEVICE uint32_t keeping_groups() {
    uint32_t keeping = 0;
#pragma unroll
    for (int group = 0; group < Tr::kConsumers; ++group) {
      Vote& vote = smem_.votes[vote_.slot][group];
      ptx::mbarrier_wait_parity(&vote.voted, vote_.phase);
      if (ptx::ld_shared(&vote.kept) == votes_) keeping |= 1u << group;
    }
    // Groups may vote in this slot again once they see the next V, which lane 0 announces.
    if constexpr (kValuesByWarp) ptx::warp_sync();
    return keeping;
  }

  const Params& p_;
  Storage& smem_;
  const int lane_;
  PipelineState<Tr::kStages> k_;   // run_keys
  PipelineState<Tr::kStagesV> v_;  // run_values
  PipelineState<kWorkSlots> work_;
  PipelineState<Storage::kVoteSlots> vote_;  // V's loader
  uint32_t votes_ = 1;                       // number of this tile's vote; 0 is none
};

}  // namespace skimattn
