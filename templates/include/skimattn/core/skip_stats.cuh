// What stat kernels count: the tiles that the row groups of a CTA visited and skipped. V's loader keeps the tally,
// since it waits for every vote anyway and has time; the groups that compute know nothing of it.
#pragma once
#include <skimattn/core/pipeline.cuh>

namespace skimattn {

// Of one work item, kept by one thread; other lanes of its warp may take part, and keep nothing.
template <class Tr, class Storage>
class SkipStats {
 public:
  static constexpr bool kCounts = Tr::kSkip == Skip::kStat;

  // Note: the groups' ranges wait in shared memory, which nobody else reads, since a loader has few registers.
  SKIM_DEVICE SkipStats(const Params& p, Storage& smem, const WorkItem& item, int lane)
      : p_(p), smem_(smem), keeps_(lane == 0) {
    if constexpr (kCounts) {
      if (!keeps_) return;
#pragma unroll
      for (int group = 0; group < Tr::kConsumers; ++group) {
        const TileRange own = visited_range<Tr>(item, item.row0 + group * Tr::kGroupRows, Tr::kGroupRows, p_);
        ptx::st_shared(&smem_.skip_stats[group][0], static_cast<uint32_t>(own.first));
        ptx::st_shared(&smem_.skip_stats[group][1], static_cast<uint32_t>(own.last));
      }
    }
  }

  // The decisions on tile n, a bit for each group that keeps it. A CTA walks the tiles of all its rows: some are not a
  // group's own. `item()` is the work item.
  template <class Item>
  SKIM_DEVICE void record(int n, uint32_t keeping, Item item) {
    if constexpr (kCounts) {
      if (!keeps_) return;
#pragma unroll
      for (int group = 0; group < Tr::kConsumers; ++group) {
        if (n < first(group) || n >= last(group)) continue;
        const bool kept = (keeping >> group & 1) != 0;
        skipped_ += kept ? 0 : 1;
        if (p_.skip_map != nullptr) ptx::st_global(map_row(item(), group) + n, static_cast<uint8_t>(kept ? 1 : 2));
      }
    }
  }

  SKIM_DEVICE void add(const WorkItem& item) const {
    if constexpr (kCounts) {
      if (!keeps_) return;
      int visited = 0;
#pragma unroll
      for (int group = 0; group < Tr::kConsumers; ++group) visited += last(group) - first(group);
      const int64_t pair = static_cast<int64_t>(item.batch) * p_.stats_stride_batch + item.head * p_.stats_stride_head;
      ptx::atomic_add(p_.stats + 2 * pair, static_cast<unsigned long long>(visited));
      ptx::atomic_add(p_.stats + 2 * pair + 1, static_cast<unsigned long long>(skipped_));
    }
  }

 private:
  SKIM_DEVICE int first(int group) const { return static_cast<int>(ptx::ld_shared(&smem_.skip_stats[group][0])); }
  SKIM_DEVICE int last(int group) const { return static_cast<int>(ptx::ld_shared(&smem_.skip_stats[group][1])); }
  SKIM_DEVICE uint8_t* map_row(const WorkItem& item, int group) const {
    return p_.skip_map + item.batch * p_.skip_map_stride_batch + item.head * p_.skip_map_stride_head +
           (item.row0 / Tr::kGroupRows + group) * p_.skip_map_stride_group;
  }

  const Params& p_;
  Storage& smem_;
  const bool keeps_;
  int skipped_ = 0;
};

}  // namespace skimattn
