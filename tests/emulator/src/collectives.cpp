// What the lanes of a warp, or the warps of a CTA, do together: shuffles, votes, named barriers, register counts.
#include <cstdio>
#include <cstring>

#include "state.h"

namespace skim_emulator {
namespace {

void wake_lanes(Warp& warp, uint32_t lanes) { warp.ready |= lanes; }

// One warp arrives. With `waits` its lanes sleep until the barrier completes.
void arrive(Warp& warp, uint32_t lanes, int id, int threads, bool waits) {
  Cta& cta = *warp.cta;
  NamedBarrier& barrier = cta.named[id];
  const int warp_index = static_cast<int>(&warp - cta.warps.data());
  const uint32_t bit = 1u << warp_index;
  if (barrier.arrived == 0) barrier.threads = threads;
  if (barrier.threads != threads) {
    fail("barrier", "named barrier %d used with %d threads, but others of this phase said %d", id, threads,
         barrier.threads);
  }
  if ((barrier.warps & bit) != 0)
    fail("barrier", "warp %d arrived twice in one phase of named barrier %d", warp_index, id);
  barrier.warps |= bit;
  if (waits) barrier.waiting |= bit;
  barrier.arrived += kWarp;
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    release(barrier.meeting, *warp.lanes[__builtin_ctz(rest)]);
  }
  if (waits) {
    for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
      Wait& wait = warp.lanes[__builtin_ctz(rest)]->wait;
      wait.kind = Wait::kNamedBarrier;
      wait.id = id;
    }
  }
  if (barrier.arrived < barrier.threads) return;
  const Clock clock = end_phase(barrier.meeting);
  for (uint32_t rest = barrier.waiting; rest != 0; rest &= rest - 1) {
    Warp& waiter = cta.warps[__builtin_ctz(rest)];
    for (Fibre* fibre : waiter.lanes) acquire(*fibre, clock);
    wake_lanes(waiter, waiter.live);
  }
  barrier = NamedBarrier{};
}

void set_warp_registers(Warp& warp, int count, bool increase) {
  if (count % 8 != 0 || count < 24 || count > 256) {
    fail("register", "setmaxnreg: expected a multiple of 8 in 24..256 (got %d)", count);
  }
  if (increase ? count < warp.registers : count > warp.registers) {
    fail("register", "setmaxnreg.%s to %d, but the warp has %d registers", increase ? "inc" : "dec", count,
         warp.registers);
  }
  warp.registers = count;
}

// The whole collective has come together: compute every lane's result and let the lanes go on.
void finish(Warp& warp) {
  const uint32_t lanes = warp.arrived;
  const int first = __builtin_ctz(lanes);
  const uint32_t first_value = warp.values[first];
  const int argument = warp.arguments[first];
  warp.arrived = 0;
  uint32_t ballot = 0;
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    if (warp.values[lane] != 0) ballot |= 1u << lane;
    if (warp.kind > Collective::kBallot && warp.arguments[lane] != argument) {
      fail("barrier", "lanes of one warp disagree on a barrier, register count or address (%d and %d)", argument,
           warp.arguments[lane]);
    }
  }
  switch (warp.kind) {
    case Collective::kSync:
      meet(warp, lanes);
      break;
    case Collective::kShuffle:
      for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
        const int lane = __builtin_ctz(rest), source = warp.arguments[lane];
        if ((lanes >> source & 1) == 0) fail("barrier", "shuffle reads lane %d, which has exited", source);
        warp.lanes[lane]->result = warp.values[source];
      }
      break;
    case Collective::kBallot:
      for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) warp.lanes[__builtin_ctz(rest)]->result = ballot;
      break;
    case Collective::kSetRegisters:
      set_warp_registers(warp, argument, first_value != 0);
      break;
    case Collective::kMatrixStore:
      if (lanes != ~0u) fail("barrier", "stmatrix: expected all lanes of the warp (%08x came)", lanes);
      break;
    case Collective::kBarrierArrive:
      arrive(warp, lanes, argument & 15, argument >> 4, false);
      break;
    case Collective::kBarrierSync:
      arrive(warp, lanes, argument & 15, argument >> 4, true);
      return;  // the barrier wakes them
    default:
      finish_tensor_collective(warp);
  }
  wake_lanes(warp, lanes);
}

void check_barrier(int id, int threads) {
  const int cta_threads = machine.current->cta->threads;
  if (id < 0 || id >= kNamedBarriers) fail("barrier", "named barrier: expected an id in 0..15 (got %d)", id);
  if (threads <= 0 || threads % kWarp != 0 || threads > cta_threads) {
    fail("barrier", "named barrier %d: expected a multiple of 32 threads, at most %d (got %d)", id, cta_threads,
         threads);
  }
}

}  // namespace

uint32_t warp_collective(Collective kind, uint32_t value, int argument) {
  Fibre& fibre = *machine.current;
  Warp& warp = *fibre.warp;
  const uint32_t bit = 1u << fibre.lane;
  if (warp.arrived == 0) warp.kind = kind;
  if (warp.kind != kind) fail("barrier", "lanes of one warp are at different warp-wide instructions");
  warp.values[fibre.lane] = value;
  warp.arguments[fibre.lane] = argument;
  warp.arrived |= bit;
  Wait wait{Wait::kCollective};
  if (warp.arrived == warp.live) {
    finish(warp);
    if ((warp.ready & bit) != 0) {
      warp.ready &= ~bit;
      return fibre.result;
    }
    wait = fibre.wait;
  }
  block(wait);
  return fibre.result;
}

void matrix_store_transposed(void* column, const uint32_t (&words)[4]) {
  Warp& warp = *machine.current->warp;
  const int lane = machine.current->lane, matrix = lane / 8, j = lane % 8;
  std::memcpy(warp.matrices[lane], words, sizeof words);
  warp_collective(Collective::kMatrixStore, 0, 0);
  // A lane has two elements of one row of each matrix: those of this column are a half of every fourth lane's word.
  uint16_t elements[8];
  for (int row = 0; row < 8; ++row) {
    elements[row] = static_cast<uint16_t>(warp.matrices[row * 4 + j / 2][matrix] >> j % 2 * 16);
  }
  warp_collective(Collective::kMatrixStore, 0, 0);  // all have taken theirs
  shared_write(column, elements, sizeof elements);
}

void lane_exited(Fibre& fibre) {
  Warp& warp = *fibre.warp;
  warp.live &= ~(1u << fibre.lane);
  if (warp.arrived != 0 && warp.arrived == warp.live) finish(warp);
}

void barrier_arrive(int id, int threads) {
  check_barrier(id, threads);
  warp_collective(Collective::kBarrierArrive, 1, id | threads << 4);
}

void barrier_sync(int id, int threads) {
  check_barrier(id, threads);
  warp_collective(Collective::kBarrierSync, 1, id | threads << 4);
}

void cta_sync() { barrier_sync(0, machine.current->cta->threads); }

void set_registers(int count, bool increase) {
  warp_collective(Collective::kSetRegisters, increase, count);
  // The pool is only known to hold once every warp has said what it wants; until then the device would wait.
  // Note: the pool is what the CTA got at launch, whole 8s per thread, not the register file.
  check_registers(*machine.current->cta, false);
}

void check_registers(const Cta& cta, bool everybody_has_spoken) {
  const int at_launch = machine.registers_at_launch, pool = at_launch * cta.threads;
  int sum = 0;
  for (const Warp& warp : cta.warps) {
    if (warp.registers == at_launch && !everybody_has_spoken) return;
    sum += warp.registers * kWarp;
  }
  if (sum > pool) {
    fail("register", "setmaxnreg: the warps of a CTA want %d registers, expected at most the %d it was launched with",
         sum, pool);
  }
}

}  // namespace skim_emulator
