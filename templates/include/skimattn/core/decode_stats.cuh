// What decode kernels of kind stat count and note: every query head that has a row in the group records its decision.
#pragma once
#include <skimattn/core/decode_work.cuh>

namespace skimattn {

// By `threads` threads together, of which the caller is number `thread`.
template <class Tr>
struct DecodeStats {
  // The decision on tile n of the item's keys.
  SKIM_DEVICE static void record(const DecodeItem& item, int n, bool kept, int thread, int threads, const Params& p) {
    if (p.skip_map == nullptr) return;
    const Heads heads = heads_of(item, p);
    for (int i = thread; i < heads.count; i += threads) {
      uint8_t* row = p.skip_map + item.base.batch * p.skip_map_stride_batch +
                     head_at(item, heads, i, p) * p.skip_map_stride_head +
                     item.base.row0 / Tr::kGroupRows * p.skip_map_stride_group;
      ptx::st_global(row + n, static_cast<uint8_t>(kept ? 1 : 2));
    }
  }

  SKIM_DEVICE static void add(const DecodeItem& item, int visited, int skipped, int thread, int threads,
                              const Params& p) {
    const Heads heads = heads_of(item, p);
    for (int i = thread; i < heads.count; i += threads) {
      const int64_t pair = static_cast<int64_t>(item.base.batch) * p.stats_stride_batch +
                           head_at(item, heads, i, p) * p.stats_stride_head;
      ptx::atomic_add(p.stats + 2 * pair, static_cast<unsigned long long>(visited));
      ptx::atomic_add(p.stats + 2 * pair + 1, static_cast<unsigned long long>(skipped));
    }
  }

 private:
  // Query heads [0, count) of the kv head that have a row in the item's group, from `first` on, modulo their number.
  struct Heads {
    int first, count;
  };
  SKIM_DEVICE static Heads heads_of(const DecodeItem& item, const Params& p) {
    const int qheads_per_kv = p.qheads_per_kv;
    const int rows = imin(Tr::kGroupRows, item.packed_rows(p) - item.base.row0);
    return {item.base.row0 % qheads_per_kv, imin(rows, qheads_per_kv)};
  }
  SKIM_DEVICE static int head_at(const DecodeItem& item, const Heads& heads, int i, const Params& p) {
    const int qheads_per_kv = p.qheads_per_kv;
    return item.base.head * qheads_per_kv + (heads.first + i) % qheads_per_kv;
  }
};

}  // namespace skimattn
