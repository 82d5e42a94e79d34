// Hands out the work of a launch and writes it down: tests/cpu/test_work_order.py says what it must be. `out` holds a
// row of words for each ticket; the first counts how often it was drawn.
#include <skimattn/sm90/ptx.cuh>
// Comes second: like all of core/ it calls the ptx.cuh that is already there.
#include <skimattn/core/scheduler.cuh>

namespace work_order {
using namespace skimattn;

constexpr int kTileM = 128;

SKIM_DEVICE void write_down(uint32_t* row, const WorkItem& item) {
  const int words[kWorkWords - 1] = {item.batch, item.head,     item.row0,    item.len_q,
                                     item.len_k, item.q_offset, item.k_offset};
  ptx::atomic_add(row, 1u);
  for (int i = 0; i < kWorkWords - 1; ++i) ptx::st_global(row + 1 + i, static_cast<uint32_t>(words[i]));
}

// As the producer does.
SKIM_DEVICE void hand_out(const Params& p) {
  const int lane = ptx::thread_index();
  if (lane >= kWarpThreads) return;
  TileScheduler<kTileM, false> scheduler(p);
  const TileCounter counter(p.work_counter);
  for (int ticket = counter.first();;) {
    const int next = lane == 0 ? counter.next() : 0;
    const WorkItem item = scheduler.decode(p, ticket);
    if (lane == 0 && item.valid) write_down(static_cast<uint32_t*>(p.out) + ticket * kWorkWords, item);
    if (lane == 0 && !item.valid) counter.finish(next, scheduler.items(p));
    if (!item.valid) break;
    ticket = ptx::shfl(next, 0);
  }
}

}  // namespace work_order

extern "C" __global__ void work_order_kernel(const __grid_constant__ skimattn::Params params) {
  work_order::hand_out(params);
}
