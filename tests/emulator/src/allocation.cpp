// Allocation of tensor memory, and what must be in order when threads and CTAs end.
#include <algorithm>
#include <cstring>

#include "tensor_memory.h"

namespace skim_emulator {
namespace {

constexpr int kMinColumns = 32;

bool is_free(const TensorMemory& memory, int base, int columns) {
  return std::none_of(memory.allocations.begin(), memory.allocations.end(),
                      [&](const Allocation& a) { return base < a.base + a.columns && a.base < base + columns; });
}

void check_columns(int columns, const char* what) {
  if (power_of_two(columns) && columns >= kMinColumns && columns <= kColumns) return;
  fail("tensor-memory", "%s: expected a power of two of columns in 32..512 (got %d)", what, columns);
}

// The address goes to shared memory as the warp's first lane writes it; the whole warp may read it.
void publish(Warp& warp, void* pointer, uint32_t address) {
  Fibre* const caller = machine.current;
  machine.current = warp.lanes[0];
  shared_write(pointer, &address, 4);
  machine.current = caller;
  Meeting meeting;
  release(meeting, *warp.lanes[0]);
  const Clock clock = end_phase(meeting);
  for (Fibre* fibre : warp.lanes) acquire(*fibre, clock);
}

}  // namespace

TensorMemory& tensor_memory(Cta& cta) {
  if (cta.tensor == nullptr) {
    cta.tensor = new TensorMemory{};
    std::memset(cta.tensor->words, 0xff, sizeof cta.tensor->words);
    cta.tensor->warps.resize(cta.warps.size());
  }
  return *cta.tensor;
}

void delete_tensor_memory(Cta& cta) {
  delete cta.tensor;
  cta.tensor = nullptr;
}

void allocate(Warp& warp, int columns) {
  TensorMemory& memory = tensor_memory(*warp.cta);
  TensorWarp& state = memory.warps[static_cast<size_t>(warp_index(warp))];
  check_columns(columns, "tcgen05_alloc");
  if (memory.relinquished) fail("tensor-memory", "tcgen05_alloc after tcgen05_relinquish_alloc_permit");
  if (columns > memory.last_columns) {
    fail("tensor-memory", "tcgen05_alloc of %d columns after one of %d: later ones may not be larger", columns,
         memory.last_columns);
  }
  for (const void* pointer : state.pointers) {
    if (pointer != state.pointers[0]) fail("barrier", "lanes of one warp disagree on where tcgen05_alloc writes");
  }
  // Not always at column 0, so that a kernel that does not use what it was given shows.
  std::vector<int> bases;
  for (int base = 0; base + columns <= kColumns; base += kMinColumns) {
    if (is_free(memory, base, columns)) bases.push_back(base);
  }
  if (bases.empty()) {
    fail("tensor-memory", "tcgen05_alloc of %d columns waits for ever: too few of the CTA's own are free", columns);
  }
  const int base = machine.schedule == Schedule::kEarly ? bases.front() : bases.back();
  memory.allocations.push_back({base, columns, warp_index(warp), warp.lanes[0]->time});
  memory.last_columns = columns;
  publish(warp, state.pointers[0], static_cast<uint32_t>(base));
}

void deallocate(Warp& warp, uint32_t address, int columns) {
  TensorMemory& memory = tensor_memory(*warp.cta);
  check_columns(columns, "tcgen05_dealloc");
  const auto found = std::find_if(memory.allocations.begin(), memory.allocations.end(), [&](const Allocation& a) {
    return static_cast<uint32_t>(a.base) == address && a.columns == columns;
  });
  if (found == memory.allocations.end()) {
    fail("tensor-memory", "tcgen05_dealloc of %d columns at %08x, which is no allocation", columns, address);
  }
  const int index = warp_index(warp);
  if (found->warp != index) {
    fail("tensor-memory", "tcgen05_dealloc by warp %d of what warp %d allocated: expected one warp for both", index,
         found->warp);
  }
  Access access = access_of_warp(*warp.cta, index, "tcgen05_dealloc", true);
  for (int band = 0; band < kBands; ++band) {
    for (int column = found->base; column < found->base + columns; ++column) {
      check_write(access, band, column, 0);
      memory.cells[band][column] = Cell{};
    }
  }
  memory.allocations.erase(found);
}

void check_tensor_exit(Fibre& fibre) {
  if (fibre.cta->tensor == nullptr) return;
  const TensorWarp& state = fibre.cta->tensor->warps[static_cast<size_t>(fibre.ids.thread / kWarp)];
  if (!state.loads.pending.empty()) fail("exit", "exits with a tcgen05_ld that no tcgen05_wait_ld has named");
  if (!state.stores.pending.empty()) fail("exit", "exits with a tcgen05_st that no tcgen05_wait_st has ended");
  for (const Issuer& issuer : fibre.cta->tensor->issuers) {
    if (issuer.thread != &fibre) continue;
    if (issuer.commits.empty() || issuer.commits.back().covers < issuer.issued) {
      fail("exit", "exits with a tcgen05_mma that no tcgen05_commit covers");
    }
  }
}

void check_tensor_end(Cta& cta) {
  if (cta.tensor == nullptr) return;
  for (const Issuer& issuer : cta.tensor->issuers) {
    if (!issuer.queue.empty()) {
      fail("exit", "the CTA ends before the tcgen05 products and commits of thread %d are done",
           issuer.thread->ids.thread);
    }
  }
  if (!cta.tensor->allocations.empty()) {
    fail("exit", "the CTA ends without a tcgen05_dealloc of the %d columns at %d",
         cta.tensor->allocations.front().columns, cta.tensor->allocations.front().base);
  }
}

}  // namespace skim_emulator
