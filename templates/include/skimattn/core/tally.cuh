// What stat kernels count: the tiles that the row groups of a CTA visited and skipped. V's loader keeps the tally,
// since it waits for every vote anyway and has time; the groups that compute know nothing of it.
#pragma once
#include <skimattn/core/pipeline.cuh>

namespace skimattn {

// Of one work item.
template <class Tr>
class Tally {
 public:
  static constexpr bool kCounts = Tr::kSkip == Skip::kStat;

  SKIM_DEVICE explicit Tally(const Params& p) : p_(p) {}

  // A group's decision on tile n. A CTA walks the tiles of all its rows: some are not this group's own.
  SKIM_DEVICE void record(const WorkItem& item, int group, int n, bool kept) {
    if constexpr (kCounts) {
      const TileRange own = group_range(item, group);
      if (n < own.first || n >= own.last) return;
      skipped_ += kept ? 0 : 1;
      if (p_.skip_map != nullptr) ptx::st_global(map_row(item, group) + n, static_cast<uint8_t>(kept ? 1 : 2));
    }
  }

  SKIM_DEVICE void add(const WorkItem& item) const {
    if constexpr (kCounts) {
      int visited = 0;
      for (int group = 0; group < Tr::kConsumers; ++group) {
        const TileRange own = group_range(item, group);
        visited += own.last - own.first;
      }
      const int64_t pair = static_cast<int64_t>(item.batch) * p_.stats_stride_batch + item.head * p_.stats_stride_head;
      ptx::atomic_add(p_.stats + 2 * pair, static_cast<unsigned long long>(visited));
      ptx::atomic_add(p_.stats + 2 * pair + 1, static_cast<unsigned long long>(skipped_));
    }
  }

 private:
  SKIM_DEVICE TileRange group_range(const WorkItem& item, int group) const {
    return visited_range<Tr>(item, item.row0 + group * Tr::kGroupRows, Tr::kGroupRows, p_);
  }
  SKIM_DEVICE uint8_t* map_row(const WorkItem& item, int group) const {
    return p_.skip_map + item.batch * p_.skip_map_stride_batch + item.head * p_.skip_map_stride_head +
           (item.row0 / Tr::kGroupRows + group) * p_.skip_map_stride_group;
  }

  const Params& p_;
  int skipped_ = 0;
};

}  // namespace skimattn
