// What must have happened before an access to tensor memory (PTX ISA, "Memory Consistency Model for 5th generation of
// TensorCore operations"). Loads and stores end with their warp's wait, products with the mbarrier of a commit; what a
// thread knows of another's reaches its tcgen05 operations through fence::before and fence::after.
#include <algorithm>

#include "tensor_memory.h"

namespace skim_emulator {
namespace {

enum Direction { kLoads, kStores };

uint32_t products_done(const Cta& cta, const Issuer& issuer, const Clock& clock) {
  for (size_t i = issuer.commits.size(); i-- > 0;) {
    const Commit& commit = issuer.commits[i];
    if (commit.phases != 0 && knows_phases(cta, clock, commit.barrier_index, commit.phases)) return commit.covers;
  }
  return 0;
}

View view_of(const Fibre& fibre) {
  View view{&fibre, {}, {}};
  const Cta& cta = *fibre.cta;
  for (int i = 0; i < kMaxIssuers; ++i) {
    const Issuer& issuer = cta.tensor->issuers[i];
    view.products[i] = products_done(cta, issuer, fibre.tensor_clock);
    view.products_unfenced[i] =
        fibre.tensor_clock == fibre.clock ? view.products[i] : products_done(cta, issuer, fibre.clock);
  }
  return view;
}

// Another thread's load or store, which its wait ended at `time` there.
void check_thread(const Access& access, const Fibre& fibre, const Fibre& other, uint32_t time, Direction direction,
                  int column) {
  const char* const did = direction == kLoads ? "read by a tcgen05_ld" : "written by a tcgen05_st";
  const int thread = other.ids.thread;
  if (!knows(fibre.clock, thread, time)) {
    fail("race", "%s uses column %d, %s of warp %d: no barrier since thread %d waited for it", access.what, column, did,
         thread / kWarp, thread);
  }
  if (access.plain) return;
  const auto before = std::upper_bound(other.before_times.begin(), other.before_times.end(), time);
  if (before == other.before_times.end() || !knows(fibre.clock, thread, *before)) {
    fail("fence",
         "%s uses column %d, %s of warp %d: no tcgen05_fence_before_thread_sync of thread %d between its wait and the "
         "barrier",
         access.what, column, did, thread / kWarp, thread);
  }
  if (!knows(fibre.tensor_clock, thread, *before)) {
    fail("fence", "%s uses column %d, %s of warp %d: no tcgen05_fence_after_thread_sync of thread %d since the barrier",
         access.what, column, did, thread / kWarp, fibre.ids.thread);
  }
}

void check_transfer(Access& access, Direction direction, int warp, uint32_t number, int column, const char* kind) {
  Cta& cta = *access.cta;
  TensorWarp& other = cta.tensor->warps[static_cast<size_t>(warp)];
  const auto& waits = (direction == kLoads ? other.loads : other.stores).waits;
  if (waits.empty() || waits.back().covers < number) {
    fail(kind, "%s uses column %d, which a tcgen05_%s of warp %d still %s: no tcgen05_wait_%s since", access.what,
         column, direction == kLoads ? "ld" : "st", warp, direction == kLoads ? "reads" : "writes",
         direction == kLoads ? "ld" : "st");
  }
  if (warp == access.warp || access.checked[direction][warp] >= number) return;
  const auto wait = std::partition_point(waits.begin(), waits.end(),
                                         [number](const TransferWait& candidate) { return candidate.covers < number; });
  for (int lane = 0; lane < kWarp; ++lane) {
    const Fibre& thread = cta.fibres[static_cast<size_t>(warp * kWarp + lane)];
    for (const View& view : access.views) {
      if (view.fibre != &thread) {
        check_thread(access, *view.fibre, thread, wait->times[lane], direction, column);
      }
    }
  }
  access.checked[direction][warp] = wait->covers;
}

void check_product(const Access& access, int issuer, uint32_t sequence, int column, const char* verb,
                   const char* kind) {
  const Issuer& other = access.cta->tensor->issuers[issuer];
  for (const View& view : access.views) {
    if ((access.plain ? view.products_unfenced : view.products)[issuer] >= sequence) continue;
    const int thread = other.thread->ids.thread;
    if (other.commits.empty() || other.commits.back().covers < sequence) {
      fail(kind, "%s uses column %d, which a tcgen05_mma %s: no tcgen05_commit of thread %d covers it", access.what,
           column, verb, thread);
    }
    if (other.done < sequence) {
      fail(kind, "%s uses column %d, which a tcgen05_mma of thread %d still %s", access.what, column, thread, verb);
    }
    if (view.products_unfenced[issuer] >= sequence) {
      fail("fence",
           "%s uses column %d, which a tcgen05_mma %s: no tcgen05_fence_after_thread_sync of thread %d since it knows "
           "of the tcgen05_commit",
           access.what, column, verb, view.fibre->ids.thread);
    }
    fail("race", "%s uses column %d, which a tcgen05_mma %s: thread %d has not waited for its tcgen05_commit",
         access.what, column, verb, view.fibre->ids.thread);
  }
}

}  // namespace

bool knows_product(const Cta& cta, const Clock& clock, int issuer, uint32_t sequence) {
  // Neighbouring granules were mostly read by the same product. A clock does not change, so neither does the answer.
  static Clock last_clock;
  static const Cta* last_cta;
  static int last_issuer;
  static uint32_t last_done;
  if (clock == nullptr) return false;
  if (clock != last_clock || &cta != last_cta || issuer != last_issuer) {
    last_done = products_done(cta, cta.tensor->issuers[issuer], clock);
    last_clock = clock;
    last_cta = &cta;
    last_issuer = issuer;
  }
  return last_done >= sequence;
}

Access access_of_warp(Cta& cta, int warp, const char* what, bool plain) {
  Access access{&cta, what, warp, -1, plain, {}, {}};
  for (int lane = 0; lane < kWarp; ++lane) {
    const Fibre& fibre = cta.fibres[static_cast<size_t>(warp * kWarp + lane)];
    const auto same = [&](const View& view) {
      return view.fibre->clock == fibre.clock && view.fibre->tensor_clock == fibre.tensor_clock;
    };
    if (std::none_of(access.views.begin(), access.views.end(), same)) access.views.push_back(view_of(fibre));
  }
  return access;
}

Access access_of_issuer(Cta& cta, int issuer, const char* what) {
  return {&cta, what, -1, issuer, false, {view_of(*cta.tensor->issuers[issuer].thread)}, {}};
}

void check_allocated(const Access& access, uint32_t column, int count, const char* what) {
  const auto& all = access.cta->tensor->allocations;
  const auto found = std::find_if(all.begin(), all.end(), [&](const Allocation& a) {
    return column >= static_cast<uint32_t>(a.base) &&
           column + static_cast<uint32_t>(count) <= static_cast<uint32_t>(a.base + a.columns);
  });
  if (found == all.end()) {
    fail("tensor-memory", "%s uses columns %u to %u, which are not inside an allocation", what, column,
         column + static_cast<uint32_t>(count) - 1);
  }
  for (const View& view : access.views) {
    const int thread = found->warp * kWarp;
    if (view.fibre->ids.thread / kWarp == found->warp || knows(view.fibre->tensor_clock, thread, found->time)) continue;
    if (!knows(view.fibre->clock, thread, found->time)) {
      fail("race", "%s uses column %u: no barrier since warp %d allocated it", what, column, found->warp);
    }
    fail("fence", "%s uses column %u: no tcgen05_fence_after_thread_sync of thread %d since warp %d allocated it", what,
         column, view.fibre->ids.thread, found->warp);
  }
}

void check_read(Access& access, int band, int column) {
  const Cell& cell = access.cta->tensor->cells[band][column];
  if (cell.written == Cell::kNobody) {
    fail("tensor-memory", "%s reads column %d, lanes %d to %d, which nobody has written", access.what, column,
         band * kBand, band * kBand + kBand - 1);
  }
  if (cell.written == Cell::kStore) {
    check_transfer(access, kStores, cell.writer, cell.write, column, "early-read");
  } else {
    check_product(access, cell.writer, cell.write, column, "writes", "early-read");
  }
}

void check_write(Access& access, int band, int column, uint32_t signature) {
  const Cell& cell = access.cta->tensor->cells[band][column];
  // Note: the ISA orders products of one thread only if accumulator, shape and kind are the same. That all of them
  // execute in the order of issue is how the hardware is known to behave, and assumed unless asked not to.
  const auto ordered = [&](int issuer, bool same) {
    return issuer == access.issuer && (same || !machine.strict_products);
  };
  if (cell.written == Cell::kStore) {
    check_transfer(access, kStores, cell.writer, cell.write, column, "early-overwrite");
  } else if (cell.written == Cell::kProduct && !ordered(cell.writer, cell.signature == signature)) {
    check_product(access, cell.writer, cell.write, column, "writes", "early-overwrite");
  }
  if (!cell.read) return;
  for (int group = 0; group < kMaxGroups; ++group) {
    if (cell.loads[group] == 0) continue;
    check_transfer(access, kLoads, group * 4 + band / 2, cell.loads[group], column, "early-overwrite");
  }
  for (int issuer = 0; issuer < kMaxIssuers; ++issuer) {
    if (cell.products[issuer] == 0 || ordered(issuer, false)) continue;
    check_product(access, issuer, cell.products[issuer], column, "reads", "early-overwrite");
  }
}

void note_write(Cell& cell, Cell::Writer kind, int writer, uint32_t number, uint32_t signature) {
  // Who read it before has been checked: whoever knows of this write knows of those reads.
  if (cell.read) cell = Cell{};
  cell.written = kind;
  cell.writer = static_cast<uint8_t>(writer);
  cell.write = number;
  cell.signature = signature;
}

}  // namespace skim_emulator
