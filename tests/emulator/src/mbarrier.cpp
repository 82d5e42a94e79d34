// mbarriers with transaction counts. Their state lives beside shared memory; only their address is in it.
#include "state.h"

namespace skim_emulator {
namespace {

constexpr int64_t kMaxTx = (1 << 20) - 1;
constexpr uint32_t kMaxCount = (1 << 20) - 1;

void complete_phase(Cta& cta, Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.tx != 0) return;
  ++barrier.phase;
  barrier.seen = false;
  ensure_known(cta, barrier.meeting);
  barrier.meeting.known[static_cast<size_t>(cta.threads + index_of(cta, barrier))] =
      static_cast<uint32_t>(barrier.phase);
  barrier.completed = end_phase(barrier.meeting);
  barrier.pending = barrier.count;
  for (Fibre* fibre : barrier.waiters) wake(*fibre);
  barrier.waiters.clear();
}

void count_arrival(Mbarrier& barrier) {
  if (barrier.phase > 0 && !barrier.seen) {
    fail("barrier", "mbarrier smem+%u: an arrival in phase %llu, but nobody has waited for the phase before it",
         barrier.offset, static_cast<unsigned long long>(barrier.phase));
  }
  if (barrier.pending == 0) {
    fail("barrier", "mbarrier smem+%u: more arrivals than the %u it was initialised with (phase %llu)", barrier.offset,
         barrier.count, static_cast<unsigned long long>(barrier.phase));
  }
  --barrier.pending;
}

}  // namespace

int index_of(const Cta& cta, const Mbarrier& barrier) { return static_cast<int>(&barrier - cta.mbarriers.data()); }

Mbarrier& find_mbarrier(Cta& cta, uint32_t offset, const char* what) {
  for (Mbarrier& barrier : cta.mbarriers) {
    if (barrier.offset != offset) continue;
    if (barrier.owner == machine.current || machine.current == nullptr) return barrier;
    if (barrier.owner->init_fences == barrier.owner_fences) {
      fail("fence", "%s on mbarrier smem+%u, whose initialisation no fence_mbarrier_init followed", what, offset);
    }
    if (!knows(machine.current->clock, barrier.owner->ids.thread, barrier.owner_time)) {
      fail("race", "%s on mbarrier smem+%u: no barrier since thread %d initialised it", what, offset,
           barrier.owner->ids.thread);
    }
    return barrier;
  }
  fail("barrier", "%s on smem+%u, which is no initialised mbarrier", what, offset);
}

Mbarrier& find_mbarrier(Cta& cta, const void* pointer, const char* what) {
  return find_mbarrier(cta, smem_offset(cta, pointer, 8, what), what);
}

void mbarrier_init(uint64_t* pointer, uint32_t count) {
  Cta& cta = *machine.current->cta;
  const uint32_t offset = smem_offset(cta, pointer, 8, "mbarrier_init");
  if (offset % 8 != 0) fail("alignment", "mbarrier_init: expected an 8-byte aligned address (got smem+%u)", offset);
  if (count == 0 || count > kMaxCount) fail("barrier", "mbarrier_init: expected a count in 1..2^20-1 (got %u)", count);
  for (const Mbarrier& barrier : cta.mbarriers) {
    if (barrier.offset == offset) fail("barrier", "mbarrier_init on the live mbarrier smem+%u", offset);
  }
  if (cta.mbarriers.size() == kMaxMbarriers) fail("barrier", "too many mbarriers in one CTA");
  cta.granules[offset / kGranule].barrier = 1;
  const Fibre& fibre = *machine.current;
  cta.mbarriers.push_back(
      {offset, count, count, 0, 0, false, machine.current, fibre.time, fibre.init_fences, {}, nullptr, {}});
}

void fence_mbarrier_init() { ++machine.current->init_fences; }

void mbarrier_arrive(uint64_t* pointer, uint32_t expect_bytes) {
  Cta& cta = *machine.current->cta;
  Mbarrier& barrier = find_mbarrier(cta, pointer, "mbarrier_arrive");
  barrier.tx += expect_bytes;
  if (barrier.tx > kMaxTx) {
    fail("barrier", "mbarrier smem+%u expects %lld bytes, more than 2^20-1", barrier.offset,
         static_cast<long long>(barrier.tx));
  }
  count_arrival(barrier);
  release(barrier.meeting, *machine.current);
  complete_phase(cta, barrier);
}

uint32_t arrive_async(Cta& cta, Mbarrier& barrier, const Clock& clock) {
  count_arrival(barrier);
  release(cta, barrier.meeting, clock);
  const auto phases = static_cast<uint32_t>(barrier.phase + 1);
  complete_phase(cta, barrier);
  return phases;
}

void complete_tx(Cta& cta, Mbarrier& barrier, uint32_t bytes) {
  barrier.tx -= bytes;
  if (barrier.tx < 0) {
    fail("barrier", "mbarrier smem+%u: a copy completed %u bytes, %lld more than it expects (phase %llu)",
         barrier.offset, bytes, static_cast<long long>(-barrier.tx), static_cast<unsigned long long>(barrier.phase));
  }
  complete_phase(cta, barrier);
}

void mbarrier_wait_parity(uint64_t* pointer, uint32_t parity) {
  if (parity > 1) fail("barrier", "mbarrier_wait_parity: expected parity 0 or 1 (got %u)", parity);
  Mbarrier& barrier = find_mbarrier(*machine.current->cta, pointer, "mbarrier_wait_parity");
  // Tested again after waking: like the device, a thread that sleeps through two phases goes on waiting.
  while ((barrier.phase & 1) == parity) {
    barrier.waiters.push_back(machine.current);
    Wait wait{Wait::kMbarrier};
    wait.barrier = &barrier;
    wait.id = static_cast<int>(parity);
    block(wait);
  }
  barrier.seen = true;
  acquire(*machine.current, barrier.completed);
}

}  // namespace skim_emulator
