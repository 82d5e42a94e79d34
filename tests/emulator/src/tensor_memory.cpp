// tcgen05.ld and .st of shapes 32x32b and 16x32bx2, and their waits.
#include "tensor_memory.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace skim_emulator {
namespace {

// A signalling NaN: any arithmetic on it leaves a quiet one.
constexpr uint32_t kPoisonBits = 0x7f85a5a5;
constexpr int kMaxRegisters = 128;

bool takes_effect_now() {
  return machine.schedule == Schedule::kEarly || (machine.schedule == Schedule::kRandom && chance(4));
}

// Cells of a band of lanes, from a column on.
struct Area {
  int band, column;
};

// What a lane holds in its registers. 32x32b: columns of its own lane of tensor memory. 16x32bx2: of the first 16
// lanes, the other 16 of the warp from `split` columns further on.
uint32_t* columns_of(TensorMemory& memory, const Transfer& transfer, uint32_t lane) {
  const uint32_t first = transfer.address >> 16, column = transfer.address & 0xffff;
  if (transfer.split == 0) return &memory.words[first + lane][column];
  return &memory.words[first + lane % kBand][column + lane / kBand * static_cast<uint32_t>(transfer.split)];
}

// The two areas of `count` columns that the warp uses, after checking that it may use this address at all.
std::array<Area, 2> check_address(const Access& access, uint32_t address, int count, int split) {
  const char* const what = access.what;
  const int index = access.warp, lane = index % 4 * kWarp;
  if (!power_of_two(count) || count > kMaxRegisters) {
    fail("tensor-memory", "%s: expected a power of two of registers up to 128 (got %d)", what, count);
  }
  if (static_cast<int>(address >> 16) != lane) {
    fail("tensor-memory", "%s at lane %u: warp %d may only use lanes %d to %d, from the first on", what, address >> 16,
         index, lane, lane + kWarp - 1);
  }
  const int band = lane / kBand, column = static_cast<int>(address & 0xffff);
  if (split != 0 && split < count) fail("tensor-memory", "%s: halves %d columns apart, of %d each", what, split, count);
  check_allocated(access, address & 0xffff, count, what);
  if (split == 0) return {Area{band, column}, Area{band + 1, column}};
  check_allocated(access, (address & 0xffff) + static_cast<uint32_t>(split), count, what);
  return {Area{band, column}, Area{band, column + split}};
}

void fetch(TensorMemory& memory, Transfer& load) {
  load.finished = true;
  load.data.resize(static_cast<size_t>(load.count * kWarp));
  for (uint32_t lane = 0; lane < kWarp; ++lane) {
    std::memcpy(&load.data[lane * static_cast<uint32_t>(load.count)], columns_of(memory, load, lane), 4u * load.count);
  }
}

void write_back(TensorMemory& memory, const Transfer& store) {
  for (uint32_t lane = 0; lane < kWarp; ++lane) {
    std::memcpy(columns_of(memory, store, lane), &store.data[lane * static_cast<uint32_t>(store.count)],
                4u * store.count);
  }
}

void hand_out(const Transfer& load) {
  for (int lane = 0; lane < kWarp; ++lane) {
    std::memcpy(load.registers[lane], &load.data[static_cast<size_t>(lane * load.count)], 4u * load.count);
  }
}

void start_load(Warp& warp, uint32_t address, int count, int split) {
  TensorMemory& memory = tensor_memory(*warp.cta);
  const int index = warp_index(warp);
  TensorWarp& state = memory.warps[static_cast<size_t>(index)];
  Access access = access_of_warp(*warp.cta, index, "tcgen05_ld", false);
  const auto areas = check_address(access, address, count, split);
  ++state.loads.issued;
  for (const auto& [band, first] : areas) {
    for (int column = first; column < first + count; ++column) {
      check_read(access, band, column);
      Cell& cell = memory.cells[band][column];
      cell.read = true;
      cell.loads[index / 4] = state.loads.issued;
    }
  }
  Transfer load{address, count, split, false, false, {}, {}};
  for (int lane = 0; lane < kWarp; ++lane) {
    auto* const registers = load.registers[lane] = static_cast<uint32_t*>(state.pointers[lane]);
    for (const Transfer& other : state.loads.pending) {
      if (registers >= other.registers[lane] + other.count || other.registers[lane] >= registers + count) continue;
      fail("register", "tcgen05_ld into registers of another whose tcgen05_wait_ld has not named them");
    }
    std::fill_n(registers, count, kPoisonBits);
  }
  load.early = takes_effect_now();
  if (load.early) {
    fetch(memory, load);
    hand_out(load);
  }
  state.loads.pending.push_back(std::move(load));
}

void start_store(Warp& warp, uint32_t address, int count, int split) {
  TensorMemory& memory = tensor_memory(*warp.cta);
  const int index = warp_index(warp);
  TensorWarp& state = memory.warps[static_cast<size_t>(index)];
  Access access = access_of_warp(*warp.cta, index, "tcgen05_st", false);
  const auto areas = check_address(access, address, count, split);
  ++state.stores.issued;
  for (const auto& [band, first] : areas) {
    for (int column = first; column < first + count; ++column) {
      check_write(access, band, column, 0);
      note_write(memory.cells[band][column], Cell::kStore, index, state.stores.issued, 0);
    }
  }
  Transfer store{address, count, split, false, false, {}, std::vector<uint32_t>(static_cast<size_t>(count * kWarp))};
  for (int lane = 0; lane < kWarp; ++lane) {
    std::memcpy(&store.data[static_cast<size_t>(lane * count)], state.pointers[lane], 4u * count);
  }
  if (takes_effect_now()) write_back(memory, store), store.finished = true;
  state.stores.pending.push_back(std::move(store));
}

void note_wait(Warp& warp, Transfers& transfers) {
  if (!transfers.waits.empty() && transfers.waits.back().covers == transfers.issued) return;
  TransferWait& wait = transfers.waits.emplace_back();
  wait.covers = transfers.issued;
  for (int lane = 0; lane < kWarp; ++lane) wait.times[lane] = warp.lanes[lane]->time;
}

// All loads of the warp are over, but only the registers that the wait names may be used: the device's compiler would
// move other uses to before it.
void wait_load(Warp& warp, int count) {
  TensorMemory& memory = tensor_memory(*warp.cta);
  TensorWarp& state = memory.warps[static_cast<size_t>(warp_index(warp))];
  for (Transfer& load : state.loads.pending) {
    if (!load.finished) fetch(memory, load);
  }
  note_wait(warp, state.loads);
  std::erase_if(state.loads.pending, [&](const Transfer& load) {
    for (int lane = 0; lane < kWarp; ++lane) {
      const auto* const named = static_cast<const uint32_t*>(state.pointers[lane]);
      if (load.registers[lane] < named || load.registers[lane] + load.count > named + count) return false;
    }
    if (load.early) return true;
    for (int lane = 0; lane < kWarp; ++lane) {
      for (int i = 0; i < load.count; ++i) {
        if (load.registers[lane][i] == kPoisonBits) continue;
        machine.current = warp.lanes[lane];
        fail("register", "register %d of a tcgen05_ld was written before its tcgen05_wait_ld", i);
      }
    }
    hand_out(load);
    return true;
  });
}

void wait_store(Warp& warp) {
  TensorMemory& memory = tensor_memory(*warp.cta);
  Transfers& stores = memory.warps[static_cast<size_t>(warp_index(warp))].stores;
  for (const Transfer& store : stores.pending) {
    if (!store.finished) write_back(memory, store);
  }
  stores.pending.clear();
  note_wait(warp, stores);
}

}  // namespace

void tensor_collective(Collective kind, uint32_t address, int count, void* pointer, int split) {
  Fibre& fibre = *machine.current;
  tensor_memory(*fibre.cta).warps[static_cast<size_t>(fibre.ids.thread / kWarp)].pointers[fibre.lane] = pointer;
  warp_collective(kind, static_cast<uint32_t>(count | split << 16), static_cast<int>(address));
}

void finish_tensor_collective(Warp& warp) {
  if (warp.live != ~0u) fail("barrier", "a tcgen05 instruction of a whole warp, of which lanes have exited");
  const auto address = static_cast<uint32_t>(warp.arguments[0]);
  const auto count = static_cast<int>(warp.values[0] & 0xffff), split = static_cast<int>(warp.values[0] >> 16);
  for (int lane = 0; lane < kWarp; ++lane) {
    if (warp.values[lane] != warp.values[0]) fail("barrier", "lanes of one warp disagree on a tcgen05 instruction");
  }
  switch (warp.kind) {
    case Collective::kTensorAlloc:
      return allocate(warp, count);
    case Collective::kTensorDealloc:
      return deallocate(warp, address, count);
    case Collective::kTensorRelinquish:
      tensor_memory(*warp.cta).relinquished = true;
      return;
    case Collective::kTensorLoad:
      return start_load(warp, address, count, split);
    case Collective::kTensorStore:
      return start_store(warp, address, count, split);
    case Collective::kTensorWaitLoad:
      return wait_load(warp, count);
    default:
      return wait_store(warp);
  }
}

}  // namespace skim_emulator
