// Fibres and the order in which they run. One OS thread; a switch is a _setjmp/_longjmp pair, without system calls.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <functional>

#include "state.h"

namespace skim_emulator {

Machine machine;
ThreadIds running;

namespace {

constexpr size_t kStackBytes = 192 * 1024;
constexpr size_t kMaxStacks = 8192;

ucontext_t start_from;

void fibre_main() {
  machine.entry(machine.block);
  Fibre& fibre = *machine.current;
  check_exit(fibre);
  fibre.done = true;
  --machine.live;
  lane_exited(fibre);
  if (--fibre.cta->live == 0) check_cta_end(*fibre.cta);
  _longjmp(machine.scheduler, 1);
}

void resume(Fibre& fibre) {
  machine.current = &fibre;
  running = fibre.ids;
  if (_setjmp(machine.scheduler) != 0) return;
  if (fibre.started) _longjmp(fibre.context, 1);
  fibre.started = true;
  ucontext_t context;
  getcontext(&context);
  size_t size;
  context.uc_stack.ss_sp =
      stack_of(static_cast<size_t>(fibre.ids.block) * fibre.cta->threads + fibre.ids.thread, &size);
  context.uc_stack.ss_size = size;
  context.uc_link = nullptr;
  makecontext(&context, fibre_main, 0);
  swapcontext(&start_from, &context);
}

// Seed 0: warps in turn. Otherwise the ready warp with the highest priority runs; priorities are drawn anew now and
// then, so that some warps run far ahead of others.
Warp* pick_warp() {
  const size_t count = machine.warps.size();
  if (machine.seed == 0) {
    for (size_t step = 1; step <= count; ++step) {
      const size_t at = (machine.last_warp + step) % count;
      if (machine.warps[at]->ready == 0) continue;
      machine.last_warp = at;
      return machine.warps[at];
    }
    return nullptr;
  }
  if (chance(256)) {
    for (Warp* warp : machine.warps) warp->priority = random_number();
    order_warps();
  }
  for (Warp* warp : machine.by_priority) {
    if (warp->ready != 0) return warp;
  }
  return nullptr;
}

int pick_lane(uint32_t ready) {
  if (machine.seed == 0) return __builtin_ctz(ready);
  for (int skip = static_cast<int>(random_number() % __builtin_popcount(ready)); skip > 0; --skip) ready &= ready - 1;
  return __builtin_ctz(ready);
}

}  // namespace

// Stacks outlive a launch: mapping and touching them costs more than a small kernel.
char* stack_of(size_t index, size_t* size) {
  static char* base = nullptr;
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  if (base == nullptr) {
    void* region = mmap(nullptr, kMaxStacks * kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (region == MAP_FAILED) abort_launch("resource", "cannot map the fibres' stacks");
    base = static_cast<char*>(region);
  }
  if (index >= kMaxStacks) abort_launch("resource", "expected at most 8192 threads in a grid");
  static std::vector<bool> guarded(kMaxStacks);
  char* stack = base + index * kStackBytes;
  if (!guarded[index]) {
    mprotect(stack, page, PROT_NONE);  // an overflow is reported, not silent
    guarded[index] = true;
  }
  *size = kStackBytes - page;
  return stack + page;
}

uint64_t random_number() {  // splitmix64
  uint64_t z = machine.random_state += 0x9e3779b97f4a7c15ull;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  return z ^ z >> 31;
}

void block(Wait wait) {
  Fibre& fibre = *machine.current;
  fibre.wait = wait;
  if (_setjmp(fibre.context) == 0) _longjmp(machine.scheduler, 1);
  fibre.wait = Wait{};
}

void order_warps() {
  machine.by_priority = machine.warps;
  std::ranges::stable_sort(machine.by_priority, std::greater{}, &Warp::priority);
}

void wake(Fibre& fibre) { fibre.warp->ready |= 1u << fibre.lane; }

void run_grid() {
  while (machine.live > 0) {
    if (machine.expired) fail("timeout", "the time limit has passed");
    const bool in_flight = !machine.loads.empty() || machine.steps != 0;
    if (machine.schedule == Schedule::kRandom && in_flight && chance(64)) deliver();
    Warp* warp = pick_warp();
    if (warp == nullptr) {
      if (!deliver()) report_deadlock();
      continue;
    }
    const int lane = pick_lane(warp->ready);
    warp->ready &= ~(1u << lane);
    resume(*warp->lanes[lane]);
  }
  machine.current = nullptr;
  finish_stores();
}

std::string describe(const Fibre& fibre) {
  char text[96];
  snprintf(text, sizeof text, "CTA %d thread %d (warpgroup %d, warp %d, lane %d)", fibre.ids.block, fibre.ids.thread,
           fibre.ids.thread / kGroup, fibre.ids.thread / kWarp, fibre.lane);
  return text;
}

void abort_launch(const char* kind, std::string message) {
  machine.kind = kind;
  machine.message = std::move(message);
  _longjmp(machine.abort_point, 1);
}

void fail(const char* kind, const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  // The string must be gone before the jump, which runs no destructors.
  {
    std::string message = machine.current == nullptr ? "" : describe(*machine.current) + ": ";
    machine.message = message + text;
  }
  machine.kind = kind;
  _longjmp(machine.abort_point, 1);
}

}  // namespace skim_emulator
