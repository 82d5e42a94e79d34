// The report when no fibre can run: who waits for what, warps with the same answer in one line.
#include <cstdio>

#include "state.h"

namespace skim_emulator {
namespace {

const char* name_of(Collective kind) {
  switch (kind) {
    case Collective::kSync:
      return "warp_sync";
    case Collective::kShuffle:
      return "a shuffle";
    case Collective::kBallot:
      return "a ballot";
    case Collective::kBarrierArrive:
      return "bar_arrive";
    case Collective::kBarrierSync:
      return "bar_sync";
    case Collective::kSetRegisters:
      return "setmaxnreg";
    case Collective::kMatrixStore:
      return "stmatrix";
    case Collective::kTensorAlloc:
      return "tcgen05_alloc";
    case Collective::kTensorDealloc:
      return "tcgen05_dealloc";
    case Collective::kTensorRelinquish:
      return "tcgen05_relinquish_alloc_permit";
    case Collective::kTensorLoad:
      return "tcgen05_ld";
    case Collective::kTensorStore:
      return "tcgen05_st";
    case Collective::kTensorWaitLoad:
      return "tcgen05_wait_ld";
    case Collective::kTensorWaitStore:
      return "tcgen05_wait_st";
  }
  return "?";
}

std::string describe_wait(const Fibre& fibre) {
  char text[256];
  const Wait& wait = fibre.wait;
  const Warp& warp = *fibre.warp;
  switch (wait.kind) {
    case Wait::kNone:
      return "runnable";
    case Wait::kCollective:
      snprintf(text, sizeof text, "%s of its warp (lanes arrived %08x of %08x)", name_of(warp.kind), warp.arrived,
               warp.live);
      break;
    case Wait::kNamedBarrier: {
      const NamedBarrier& barrier = fibre.cta->named[wait.id];
      snprintf(text, sizeof text, "named barrier %d (%d of %d threads arrived)", wait.id, barrier.arrived,
               barrier.threads);
      break;
    }
    case Wait::kMbarrier: {
      const Mbarrier& barrier = *wait.barrier;
      snprintf(text, sizeof text,
               "mbarrier smem+%u parity %d (phase %llu, pending arrivals %u of %u, pending tx %lld bytes)",
               barrier.offset, wait.id, static_cast<unsigned long long>(barrier.phase), barrier.pending, barrier.count,
               static_cast<long long>(barrier.tx));
      break;
    }
    case Wait::kWgmma:
      snprintf(text, sizeof text, "wgmma_wait<%d> (%d of 128 threads of the warpgroup there)", wait.id,
               fibre.cta->groups[fibre.ids.thread / kGroup].waiting);
      break;
  }
  return text;
}

}  // namespace

void report_deadlock() {
  std::string report = "no thread can run";
  for (const Cta& cta : machine.ctas) {
    std::string previous;
    int first = 0, last = -1;
    const auto flush = [&] {
      if (previous.empty()) return;
      char text[64];
      snprintf(text, sizeof text, "\n  CTA %d thread%s %d", cta.index, first == last ? "" : "s", first);
      report += text;
      if (first != last) report += "-" + std::to_string(last);
      report += " wait" + std::string(first == last ? "s" : "") + " for " + previous;
    };
    for (const Fibre& fibre : cta.fibres) {
      if (fibre.done) continue;
      const std::string text = describe_wait(fibre);
      if (text != previous || fibre.ids.thread != last + 1) {
        flush();
        previous = text;
        first = fibre.ids.thread;
      }
      last = fibre.ids.thread;
    }
    flush();
  }
  machine.kind = "deadlock";
  machine.message = report;
  _longjmp(machine.abort_point, 1);
}

}  // namespace skim_emulator
