// Happens-before, by vector clocks: barriers carry what the arriving threads know to those who wait. A missing barrier
// is found even where this run happened to take the right order.
#include "state.h"

namespace skim_emulator {
namespace {

size_t components(const Cta& cta) { return static_cast<size_t>(cta.threads + kMaxMbarriers); }

void merge(std::vector<uint32_t>& into, const std::vector<uint32_t>& from) {
  for (size_t i = 0; i < into.size(); ++i) into[i] = into[i] > from[i] ? into[i] : from[i];
}

bool contains(const std::vector<uint32_t>& big, const std::vector<uint32_t>& small) {
  bool less = false;
  for (size_t i = 0; i < big.size(); ++i) less |= big[i] < small[i];
  return !less;
}

// The lanes of a warp mostly know the same and learn the same: remember the last few joins.
Clock join(const Clock& a, const Clock& b) {
  struct Entry {
    Clock a, b, result;
  };
  static Entry recent[4];
  static unsigned next = 0;
  if (a == nullptr || a == b) return b;
  if (b == nullptr) return a;
  for (const Entry& entry : recent) {
    if (entry.a == a && entry.b == b) return entry.result;
  }
  Clock result = contains(*b, *a) ? b : contains(*a, *b) ? a : nullptr;
  if (result == nullptr) {
    std::vector<uint32_t> both = *a;
    merge(both, *b);
    result = Clock(std::move(both));
  }
  recent[next++ % 4] = {a, b, result};
  return result;
}

}  // namespace

void ensure_known(const Cta& cta, Meeting& meeting) {
  if (meeting.known.empty()) meeting.known.assign(components(cta), 0);
}

void release(const Cta& cta, Meeting& meeting, const Clock& clock) {
  ensure_known(cta, meeting);
  if (clock == nullptr || clock == meeting.last) return;
  merge(meeting.known, *clock);
  meeting.last = clock;
}

void release(Meeting& meeting, Fibre& fibre) {
  release(*fibre.cta, meeting, fibre.clock);
  meeting.known[static_cast<size_t>(fibre.ids.thread)] = fibre.time++;
}

Clock end_phase(Meeting& meeting) {
  Clock result;
  if (!meeting.known.empty()) result = Clock(std::move(meeting.known));
  meeting = Meeting{};
  return result;
}

void acquire(Fibre& fibre, const Clock& clock) { fibre.clock = join(fibre.clock, clock); }

void meet(Warp& warp, uint32_t lanes) {
  Meeting meeting;
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) release(meeting, *warp.lanes[__builtin_ctz(rest)]);
  const Clock clock = end_phase(meeting);
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) acquire(*warp.lanes[__builtin_ctz(rest)], clock);
}

}  // namespace skim_emulator
