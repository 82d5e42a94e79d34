// When what is in flight takes effect: loads by TMA, products and commits of tcgen05. Late: only when no thread can go
// on, and then what somebody waits for. Random: anything, at any time.
#include "tensor_memory.h"

namespace skim_emulator {
namespace {

struct Queue {
  Cta* cta;
  Issuer* issuer;
};

// Those with something in them.
const std::vector<Queue>& queues() {
  static std::vector<Queue> found;
  found.clear();
  if (machine.steps == 0) return found;
  for (Cta& cta : machine.ctas) {
    if (cta.tensor == nullptr) continue;
    for (Issuer& issuer : cta.tensor->issuers) {
      if (!issuer.queue.empty()) found.push_back({&cta, &issuer});
    }
  }
  return found;
}

bool waited_for(const Queue& queue, const Step& step) {
  if (!step.commit) return false;
  const Commit& commit = queue.issuer->commits[step.commit_index];
  return !queue.cta->mbarriers[static_cast<size_t>(commit.barrier_index)].waiters.empty();
}

// Up to the first commit that somebody waits for.
bool deliver_awaited_commit() {
  for (const Queue& queue : queues()) {
    size_t steps = 0;
    for (size_t i = 0; i < queue.issuer->queue.size() && steps == 0; ++i) {
      if (waited_for(queue, queue.issuer->queue[i])) steps = i + 1;
    }
    for (size_t i = 0; i < steps; ++i) run_step(*queue.cta, *queue.issuer);
    if (steps != 0) return true;
  }
  return false;
}

}  // namespace

bool deliver() {
  machine.current = nullptr;
  const size_t loads = machine.loads.size();
  if (machine.schedule == Schedule::kRandom) {
    const std::vector<Queue>& waiting = queues();
    if (loads + waiting.size() == 0) return false;
    const size_t chosen = random_number() % (loads + waiting.size());
    if (chosen < loads) {
      land_at(chosen);
    } else {
      run_step(*waiting[chosen - loads].cta, *waiting[chosen - loads].issuer);
    }
    return true;
  }
  for (size_t i = 0; i < loads; ++i) {
    if (!load_is_awaited(machine.loads[i])) continue;
    land_at(i);
    return true;
  }
  if (deliver_awaited_commit()) return true;
  if (loads != 0) {
    land_at(0);
    return true;
  }
  const std::vector<Queue>& waiting = queues();
  return !waiting.empty() && run_step(*waiting.front().cta, *waiting.front().issuer);
}

}  // namespace skim_emulator
