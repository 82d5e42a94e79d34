// What must have happened before an access to shared memory. Kinds of report: early-read and early-overwrite, where the
// other access is still in flight; race, where it is not but only by luck; fence, where the proxies were not joined.
#include <algorithm>
#include <cstring>

#include "state.h"

namespace skim_emulator {
namespace {

bool knows_write(const Fibre& fibre, const Word& word) {
  const int writer = word.writer - 1;
  return writer < 0 || writer == fibre.ids.thread || knows(fibre.clock, writer, word.time);
}

void check_barriers(const Cta& cta, uint32_t offset, uint32_t bytes, const char* what) {
  for (const Mbarrier& barrier : cta.mbarriers) {
    if (offset < barrier.offset + 8 && barrier.offset < offset + bytes) {
      fail("barrier", "%s at smem+%u touches a live mbarrier", what, offset);
    }
  }
}

void check_landed(const Cta& cta, const Clock& clock, const Granule& granule, uint32_t offset, const char* what) {
  if (!granule.loaded || knows_phases(cta, clock, granule.load_barrier, granule.load_phases)) return;
  fail("race", "%s uses smem+%u, filled by a tma_load whose mbarrier smem+%u it has not waited for", what, offset,
       cta.mbarriers[granule.load_barrier].offset);
}

void check_word(const Fibre& fibre, uint32_t word, const char* what) {
  const Word& state = fibre.cta->words[word];
  if (knows_write(fibre, state)) return;
  fail("race", "%s at smem+%u, written by thread %d: no barrier in between", what, word * 4, state.writer - 1);
}

// A wgmma's operands are free once all threads of its warpgroup have waited for it.
void check_wait_known(const Fibre& fibre, size_t group, uint32_t wait, uint32_t offset, const char* what) {
  // Neighbouring granules were mostly read by the same product: look each wait up once.
  static Clock last_clock;
  static size_t last_group;
  static uint32_t last_wait;
  if (fibre.clock != nullptr && fibre.clock == last_clock && group == last_group && wait == last_wait) return;
  const auto& times = fibre.cta->groups[group].wait_times[wait - 1];
  for (int t = 0; t < kGroup; ++t) {
    const int thread = static_cast<int>(group) * kGroup + t;
    if (thread == fibre.ids.thread || knows(fibre.clock, thread, times[static_cast<size_t>(t)])) continue;
    fail("race", "%s at smem+%u, read by a wgmma: no barrier since thread %d waited for it", what, offset, thread);
  }
  last_clock = fibre.clock;
  last_group = group;
  last_wait = wait;
}

// The first fence_proxy_async of a thread after its write, by its own time; 0 = none.
uint32_t proxy_fence(const Fibre& writer, uint32_t time) {
  const auto fence = std::upper_bound(writer.fence_times.begin(), writer.fence_times.end(), time);
  return fence == writer.fence_times.end() ? 0 : *fence;
}

// Whether nothing that other threads did at these times is unknown. Mostly so: one pass without branches says it.
bool knows_all(const Fibre& fibre, const std::vector<uint32_t>& times) {
  if (fibre.clock == nullptr) return false;
  const uint32_t* const known = (*fibre.clock).data();
  const size_t self = static_cast<size_t>(fibre.ids.thread);
  uint32_t unknown = 0;
  for (size_t t = 0; t < times.size(); ++t) unknown += times[t] > known[t];
  return unknown == (times[self] > known[self] ? 1u : 0u);
}

// Before a word is written: every thread that has read it must be known to have done so.
void check_threads_have_read(const Fibre& fibre, uint32_t word, uint32_t offset, const char* what) {
  const Cta& cta = *fibre.cta;
  if (!cta.words[word].read) return;
  const auto& times = cta.readers[cta.readers_of[word] - 1];
  if (knows_all(fibre, times)) return;
  for (int t = 0; t < cta.threads; ++t) {
    const uint32_t time = times[static_cast<size_t>(t)];
    if (time == 0 || t == fibre.ids.thread || knows(fibre.clock, t, time)) continue;
    fail("race", "%s at smem+%u, read by thread %d: no barrier in between", what, offset, t);
  }
}

// Before a copy writes over what a thread wrote: its fence_proxy_async since, and a barrier, must have come.
void check_write_is_fenced(const Fibre& fibre, uint32_t word, const char* what) {
  check_word(fibre, word, what);
  const Word& state = fibre.cta->words[word];
  if (state.writer == 0) return;
  const Fibre& writer = fibre.cta->fibres[static_cast<size_t>(state.writer - 1)];
  const uint32_t fence = proxy_fence(writer, state.time);
  if (fence == 0) {
    fail("fence", "%s at smem+%u, written by thread %d without a fence_proxy_async since", what, word * 4,
         writer.ids.thread);
  }
  if (&writer == &fibre || knows(fibre.clock, writer.ids.thread, fence)) return;
  fail("race", "%s at smem+%u, written by thread %d: no barrier after its fence_proxy_async", what, word * 4,
       writer.ids.thread);
}

// Before this thread, or a copy it starts, may write a granule: everybody who read it must be known to be done.
void check_readers_done(const Fibre& fibre, const Granule& granule, uint32_t offset, const char* what) {
  const Cta& cta = *fibre.cta;
  if (granule.mma_reads != 0) fail("early-overwrite", "%s at smem+%u, which a wgmma still reads", what, offset);
  if (granule.store_reads != 0) fail("early-overwrite", "%s at smem+%u, which a tma_store still reads", what, offset);
  if (granule.product_reads != 0) {
    fail("early-overwrite", "%s at smem+%u, which a tcgen05_mma still reads", what, offset);
  }
  for (int i = 0; i < kMaxIssuers; ++i) {
    if (granule.products[i] == 0 || knows_product(cta, fibre.clock, i, granule.products[i])) continue;
    fail("race", "%s at smem+%u, read by a tcgen05_mma: its tcgen05_commit has not been waited for", what, offset);
  }
  if (granule.storer != nullptr) {
    const auto& times = granule.storer->store_read_times;
    const uint32_t time = granule.store_group < times.size() ? times[granule.store_group] : 0;
    const int storer = granule.storer->ids.thread;
    if (time == 0) {
      fail("early-overwrite", "%s at smem+%u, read by a tma_store of thread %d that nobody has waited for", what,
           offset, storer);
    }
    if (storer != fibre.ids.thread && !knows(fibre.clock, storer, time)) {
      fail("race", "%s at smem+%u, read by a tma_store: no barrier since thread %d waited for it", what, offset,
           storer);
    }
  }
  for (size_t g = 0; g < cta.groups.size(); ++g) {
    if (granule.mma_waits[g] != 0) check_wait_known(fibre, g, granule.mma_waits[g], offset, what);
  }
}

}  // namespace

void generic_read(Fibre& fibre, uint32_t offset, uint32_t bytes) {
  Cta& cta = *fibre.cta;
  const Granule& granule = cta.granules[offset / kGranule];
  if (granule.barrier != 0) check_barriers(cta, offset, bytes, "ld_shared");
  if (granule.loads != 0) fail("early-read", "ld_shared at smem+%u, where a tma_load has not landed", offset);
  check_landed(cta, fibre.clock, granule, offset, "ld_shared");
  for (uint32_t word = offset / 4; word < (offset + bytes) / 4; ++word) {
    check_word(fibre, word, "ld_shared");
    cta.words[word].read = true;
    uint32_t& place = cta.readers_of[word];
    if (place == 0) {
      cta.readers.emplace_back(static_cast<size_t>(cta.threads), 0u);
      place = static_cast<uint32_t>(cta.readers.size());
    }
    cta.readers[place - 1][static_cast<size_t>(fibre.ids.thread)] = fibre.time;
  }
}

void generic_write(Fibre& fibre, uint32_t offset, uint32_t bytes, const void* value) {
  Cta& cta = *fibre.cta;
  Granule& granule = cta.granules[offset / kGranule];
  if (granule.barrier != 0) check_barriers(cta, offset, bytes, "st_shared");
  if (granule.loads != 0) fail("early-overwrite", "st_shared at smem+%u, where a tma_load has not landed", offset);
  check_landed(cta, fibre.clock, granule, offset, "st_shared");
  check_readers_done(fibre, granule, offset, "st_shared");
  granule.written = true;
  for (uint32_t word = offset / 4; word < (offset + bytes) / 4; ++word) {
    // Two threads may write the same value in any order.
    if (std::memcmp(cta.smem + word * 4, static_cast<const uint8_t*>(value) + (word * 4 - offset), 4) != 0) {
      check_word(fibre, word, "st_shared");
    }
    Word& state = cta.words[word];
    check_threads_have_read(fibre, word, offset, "st_shared");
    state.writer = static_cast<uint16_t>(fibre.ids.thread + 1);
    state.time = fibre.time;
  }
}

void async_write_begins(Fibre& fibre, uint32_t offset, uint32_t bytes, const char* map) {
  Cta& cta = *fibre.cta;
  const std::string what = std::string("tma_load of ") + map;
  for (uint32_t at = offset; at < offset + bytes; at += kGranule) {
    Granule& granule = cta.granules[at / kGranule];
    if (granule.barrier != 0) fail("barrier", "%s over the live mbarrier in smem+%u", what.c_str(), at);
    if (granule.loads != 0) {
      fail("early-overwrite", "%s at smem+%u, where another has not landed", what.c_str(), at);
    }
    check_landed(cta, fibre.clock, granule, at, what.c_str());
    check_readers_done(fibre, granule, at, what.c_str());
    for (uint32_t word = at / 4; word < at / 4 + kGranule / 4; ++word) {
      check_threads_have_read(fibre, word, at, what.c_str());
      if (granule.written) check_write_is_fenced(fibre, word, what.c_str());
    }
    granule.loads = 1;
  }
}

void async_write_lands(Cta& cta, uint32_t offset, uint32_t bytes, int barrier, uint32_t phases) {
  for (uint32_t at = offset; at < offset + bytes; at += kGranule) {
    Granule& granule = cta.granules[at / kGranule];
    granule = Granule{};
    granule.loaded = true;
    granule.load_barrier = static_cast<uint16_t>(barrier);
    granule.load_phases = phases;
  }
  std::fill_n(cta.words.begin() + offset / 4, bytes / 4, Word{});
}

void check_async_read(Cta& cta, uint32_t offset, const std::vector<Clock>& clocks, const char* what,
                      const Fibre* alone) {
  const Granule& granule = cta.granules[offset / kGranule];
  if (granule.loads != 0) fail("early-read", "%s reads smem+%u, where a tma_load has not landed", what, offset);
  for (const Clock& clock : clocks) check_landed(cta, clock, granule, offset, what);
  if (!granule.written) return;
  for (uint32_t word = offset / 4; word < offset / 4 + kGranule / 4; ++word) {
    const Word& state = cta.words[word];
    if (state.writer == 0) continue;
    const Fibre& writer = cta.fibres[static_cast<size_t>(state.writer - 1)];
    const uint32_t fence = proxy_fence(writer, state.time);
    if (fence == 0) {
      fail("fence", "%s reads smem+%u, written by thread %d without a fence_proxy_async since", what, word * 4,
           writer.ids.thread);
    }
    for (const Clock& clock : clocks) {
      if (&writer == alone || knows(clock, writer.ids.thread, fence)) continue;
      fail("race", "%s reads smem+%u, written by thread %d: no barrier after its fence_proxy_async", what, word * 4,
           writer.ids.thread);
    }
  }
}

void check_product_read(Fibre& fibre, uint32_t offset) {
  Cta& cta = *fibre.cta;
  static std::vector<Clock> clocks(1);
  clocks[0] = fibre.clock;
  check_async_read(cta, offset, clocks, "tcgen05_mma", &fibre);
  if (fibre.tensor_clock == fibre.clock) return;
  const Granule& granule = cta.granules[offset / kGranule];
  bool seen = !granule.loaded || knows_phases(cta, fibre.tensor_clock, granule.load_barrier, granule.load_phases);
  for (uint32_t word = offset / 4; granule.written && word < offset / 4 + kGranule / 4; ++word) {
    const Word& state = cta.words[word];
    if (state.writer == 0 || state.writer == fibre.ids.thread + 1) continue;
    const Fibre& writer = cta.fibres[static_cast<size_t>(state.writer - 1)];
    seen = seen && knows(fibre.tensor_clock, writer.ids.thread, proxy_fence(writer, state.time));
  }
  if (seen) return;
  fail("fence", "tcgen05_mma reads smem+%u: no tcgen05_fence_after_thread_sync since the barrier that made it ready",
       offset);
}

}  // namespace skim_emulator
