// The C interface: run one grid, give back an error text.
#include <cstdio>
#include <cstring>
#include <memory>

#include "guard.h"
#include "state.h"

namespace skim_emulator {
namespace {

void build_cta(Cta& cta, int index, int grid, int threads, int smem_bytes, uint8_t* smem) {
  cta.index = index;
  cta.threads = cta.live = threads;
  cta.smem_bytes = smem_bytes;
  cta.smem = smem;
  std::memset(smem, 0xff, static_cast<size_t>(smem_bytes));  // NaN: what nobody wrote should show
  cta.fibres.assign(static_cast<size_t>(threads), Fibre{});
  cta.warps.assign(static_cast<size_t>(threads / kWarp), Warp{});
  cta.groups.assign(static_cast<size_t>((threads + kGroup - 1) / kGroup), Warpgroup{});
  cta.granules.assign(static_cast<size_t>(smem_bytes / kGranule + 1), Granule{});
  cta.words.assign(static_cast<size_t>(smem_bytes / 4 + 4), Word{});
  cta.readers_of.assign(cta.words.size(), 0);
  cta.tensor = nullptr;
  cta.mbarriers.reserve(kMaxMbarriers);  // never moves: waiters point into it
  for (int t = 0; t < threads; ++t) {
    Fibre& fibre = cta.fibres[static_cast<size_t>(t)];
    Warp& warp = cta.warps[static_cast<size_t>(t / kWarp)];
    fibre.ids = {t, index, grid};
    fibre.lane = t % kWarp;
    fibre.warp = &warp;
    fibre.cta = &cta;
    fibre.time = 1;
    warp.cta = &cta;
    warp.lanes[fibre.lane] = &fibre;
    warp.live = warp.ready = ~0u;
    warp.registers = machine.registers_at_launch;
    warp.priority = random_number();
  }
}

void clean_up() {
  for (Cta& cta : machine.ctas) {
    for (Warpgroup& group : cta.groups) {
      for (Wgmma* op : group.ops) delete op;
      for (AccumulatorTile* tile : group.tiles) delete tile;
    }
    delete_tensor_memory(cta);
  }
  machine.ctas.clear();
  machine.warps.clear();
  machine.by_priority.clear();
  machine.loads.clear();
  machine.stores.clear();
  machine.ranges.clear();
}

void run() {
  // Nothing with a destructor may live between here and the fibres.
  if (_setjmp(machine.abort_point) == 0) run_grid();
}

}  // namespace
}  // namespace skim_emulator

// `entry` takes the parameter block; `ranges` are (base, bytes) pairs of global memory the kernel may touch, none =
// not checked. Returns 0, or 1 with "kind\nmessage" in `error`.
extern "C" int skim_emulator_launch(void (*entry)(const void*), const void* block, int grid, int threads,
                                    int ctas_per_sm, int smem_bytes, int schedule, int strict_products, uint64_t seed,
                                    double seconds, const uint64_t* ranges, int range_count, char* error,
                                    int error_bytes) {
  using namespace skim_emulator;
  machine.kind.clear();
  machine.message.clear();
  machine.registers_at_launch = kRegisterFile / (ctas_per_sm * threads) / 8 * 8;
  machine.schedule = static_cast<Schedule>(schedule);
  machine.strict_products = strict_products != 0;
  machine.seed = machine.random_state = seed;
  machine.current = nullptr;
  machine.entry = entry;
  machine.block = block;
  machine.last_warp = 0;
  machine.expired = false;
  machine.steps = 0;
  machine.live = grid * threads;
  for (int i = 0; i < range_count; ++i) machine.ranges.push_back({ranges[2 * i], ranges[2 * i + 1]});
  if (smem_bytes > kMaxSmem) {
    snprintf(error, static_cast<size_t>(error_bytes), "resource\nexpected at most %d bytes of shared memory (got %d)",
             kMaxSmem, smem_bytes);
    return 1;
  }
  const size_t per_cta = static_cast<size_t>(smem_bytes + 1023) / 1024 * 1024;
  const size_t total = per_cta * static_cast<size_t>(grid) + 1024;
  const std::unique_ptr<uint8_t[]> memory(new uint8_t[total]);
  uint8_t* base = memory.get() + (1024 - reinterpret_cast<uintptr_t>(memory.get()) % 1024) % 1024;
  machine.ctas = std::vector<Cta>(static_cast<size_t>(grid));
  for (int c = 0; c < grid; ++c) {
    build_cta(machine.ctas[static_cast<size_t>(c)], c, grid, threads, smem_bytes,
              base + per_cta * static_cast<size_t>(c));
  }
  for (Cta& cta : machine.ctas) {
    for (Warp& warp : cta.warps) machine.warps.push_back(&warp);
  }
  order_warps();
  {
    const FaultGuard faults;
    const TimeGuard time(seconds);
    run();
  }
  machine.current = nullptr;
  clean_up();
  if (machine.kind.empty()) return 0;
  snprintf(error, static_cast<size_t>(error_bytes), "%s\n%s", machine.kind.c_str(), machine.message.c_str());
  return 1;
}
