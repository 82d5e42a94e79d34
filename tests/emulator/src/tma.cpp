// TMA: boxes with the 128-byte swizzle and zero fill. A load lands, and a store is read and written, when the schedule
// says so; until then its shared memory counts as in flight.
#include <cstring>

#include "state.h"

namespace skim_emulator {
namespace {

constexpr int kSwizzleBytes = 128, kMaxBox = 256;
constexpr uint8_t kPoison = 0xff;  // a NaN in both 16-bit formats

const Map& checked_map(const void* pointer, const char* what) {
  const Map& map = *static_cast<const Map*>(pointer);
  if (map.magic != kMapMagic) fail("tensor-map", "%s: the descriptor at %p was not encoded", what, pointer);
  if (reinterpret_cast<uintptr_t>(pointer) % 64 != 0) {
    fail("alignment", "%s: descriptor %s is not 64-byte aligned", what, map.name);
  }
  if (map.address % 16 != 0) fail("tensor-map", "%s: address of %s is not a multiple of 16", what, map.name);
  for (int i = 0; i < 3; ++i) {
    if (map.strides[i] % 16 != 0 || map.strides[i] >= 1ull << 40) {
      fail("tensor-map", "%s: stride %d of %s: expected a multiple of 16 below 2^40 (got %llu)", what, i + 1, map.name,
           static_cast<unsigned long long>(map.strides[i]));
    }
  }
  for (int i = 0; i < 4; ++i) {
    if (map.dims[i] == 0) fail("tensor-map", "%s: dimension %d of %s is empty", what, i, map.name);
  }
  for (int i = 0; i < 4; ++i) {
    if (map.box[i] == 0 || map.box[i] > kMaxBox) {
      fail("tensor-map", "%s: box of %s: expected 1..256 (got %u)", what, map.name, map.box[i]);
    }
  }
  if (map.box[0] * map.element_bytes > kSwizzleBytes || map.box[0] * map.element_bytes % 16 != 0) {
    fail("tensor-map", "%s: box of %s is %u bytes wide, expected a multiple of 16 up to the swizzle's 128", what,
         map.name, map.box[0] * map.element_bytes);
  }
  return map;
}

uint32_t checked_smem(Cta& cta, const void* pointer, uint32_t bytes, const char* what) {
  const uint32_t offset = smem_offset(cta, pointer, bytes, what);
  // CUDA's programming guide asks no more with a 128-byte swizzle. The pattern goes by address bits, so a box that
  // starts at a row of a larger one lands where that one would have put its rows.
  if (offset % kSwizzleBytes != 0) {
    fail("alignment", "%s: expected shared memory aligned to 128 bytes (got smem+%u)", what, offset);
  }
  return offset;
}

// Rows of 128 bytes that a box fills.
uint32_t box_rows(const Map& map) { return map.box[1] * map.box[2] * map.box[3]; }

// Calls visit(byte of shared memory, bytes, global address or null where the tensor ends) for 16-byte pieces.
template <class Visit>
void for_each_piece(const Map& map, const int (&at)[4], uint32_t smem, const char* what, Visit visit) {
  const uint32_t width = map.box[0] * map.element_bytes;
  for (uint32_t row = 0; row < box_rows(map); ++row) {
    // The box's dimensions follow each other in shared memory, the second one fastest.
    const uint32_t within[3] = {row % map.box[1], row / map.box[1] % map.box[2], row / (map.box[1] * map.box[2])};
    bool inside = true;
    uint64_t line = map.address;
    for (int i = 1; i < 4; ++i) {
      const int64_t index = static_cast<int64_t>(at[i]) + within[i - 1];
      inside = inside && index >= 0 && index < map.dims[i];
      line += index * map.strides[i - 1];
    }
    for (uint32_t byte = 0; byte < width; byte += kGranule) {
      // The hardware swizzles address bits, not offsets: 16-byte chunk ^= row of the 1024-byte atom.
      uint32_t address = kSmemBase + smem + row * kSwizzleBytes + byte;
      address ^= (address >> 7 & 7) << 4;
      const int64_t column = at[0] + static_cast<int64_t>(byte / map.element_bytes);
      const int64_t left = (static_cast<int64_t>(map.dims[0]) - column) * map.element_bytes;
      const int valid = !inside || column < 0 || left <= 0 ? 0 : left < kGranule ? static_cast<int>(left) : kGranule;
      auto* global = reinterpret_cast<uint8_t*>(line + column * map.element_bytes);
      if (valid > 0) check_global(global, valid, what);
      visit(address - kSmemBase, valid, global);
    }
  }
}

void land(const Load& load) {
  Cta& cta = *load.cta;
  for_each_piece(load.map, load.at, load.to, "tma_load", [&](uint32_t smem, int valid, const uint8_t* global) {
    std::memset(cta.smem + smem, 0, kGranule);
    if (valid > 0) std::memcpy(cta.smem + smem, global, valid);
  });
  Mbarrier& barrier = find_mbarrier(cta, load.barrier, "tma_load");
  async_write_lands(cta, load.to, load.bytes, index_of(cta, barrier), static_cast<uint32_t>(barrier.phase + 1));
  complete_tx(cta, barrier, load.bytes);
}

void read_source(Store& store) {
  if (store.read) return;
  Cta& cta = *store.cta;
  store.read = true;
  if (std::memcmp(store.data.data(), cta.smem + store.from, store.bytes) != 0) {
    fail("early-overwrite", "smem+%u.. changed while a tma_store to %s was reading it", store.from, store.map.name);
  }
  for (uint32_t g = store.from / kGranule; g < (store.from + store.bytes) / kGranule; ++g)
    --cta.granules[g].store_reads;
}

void write_target(Store& store) {
  for_each_piece(store.map, store.at, store.from, "tma_store", [&](uint32_t smem, int valid, uint8_t* global) {
    if (valid > 0) std::memcpy(global, store.data.data() + (smem - store.from), valid);
  });
}

}  // namespace

void tma_load(void* to, const void* pointer, uint64_t* barrier, const int (&at)[4]) {
  Fibre& fibre = *machine.current;
  Cta& cta = *fibre.cta;
  const Map& map = checked_map(pointer, "tma_load");
  const uint32_t bytes = box_rows(map) * kSwizzleBytes;
  Load load{&cta, &fibre, map, checked_smem(cta, to, bytes, "tma_load"), 0, bytes, {at[0], at[1], at[2], at[3]}};
  load.barrier = find_mbarrier(cta, barrier, "tma_load").offset;
  load.bytes = bytes;
  if (map.box[0] * map.element_bytes != kSwizzleBytes) {
    fail("tensor-map", "tma_load: the emulator only knows boxes 128 bytes wide (%s)", map.name);
  }
  async_write_begins(fibre, load.to, bytes, map.name);
  const Schedule schedule = machine.schedule;
  if (schedule == Schedule::kEarly || (schedule == Schedule::kRandom && chance(4))) return land(load);
  std::memset(cta.smem + load.to, kPoison, bytes);
  machine.loads.push_back(load);
}

bool load_is_awaited(const Load& load) { return !find_mbarrier(*load.cta, load.barrier, "tma_load").waiters.empty(); }

void land_at(size_t index) {
  const Load load = machine.loads[index];
  machine.loads.erase(machine.loads.begin() + static_cast<long>(index));
  land(load);
}

void tma_store(const void* pointer, const void* from, const int (&at)[4]) {
  Fibre& fibre = *machine.current;
  Cta& cta = *fibre.cta;
  const Map& map = checked_map(pointer, "tma_store");
  const uint32_t bytes = box_rows(map) * kSwizzleBytes;
  const uint32_t offset = checked_smem(cta, from, bytes, "tma_store");
  const std::vector<Clock> clocks{fibre.clock};
  fibre.last_store_group = fibre.store_groups + 1;
  for (uint32_t byte = offset; byte < offset + bytes; byte += kGranule) {
    check_async_read(cta, byte, clocks, "tma_store", &fibre);
    Granule& granule = cta.granules[byte / kGranule];
    ++granule.store_reads;
    granule.storer = &fibre;
    granule.store_group = fibre.store_groups;
  }
  machine.stores.push_back({&cta,
                            &fibre,
                            map,
                            offset,
                            bytes,
                            fibre.store_groups,
                            false,
                            {at[0], at[1], at[2], at[3]},
                            std::vector<uint8_t>(cta.smem + offset, cta.smem + offset + bytes)});
}

void tma_store_commit() {
  Fibre& fibre = *machine.current;
  const bool now = machine.schedule == Schedule::kEarly || (machine.schedule == Schedule::kRandom && chance(2));
  for (size_t i = 0; now && i < machine.stores.size();) {
    Store& store = machine.stores[i];
    if (store.thread != &fibre) {
      ++i;
      continue;
    }
    read_source(store);
    write_target(store);
    machine.stores.erase(machine.stores.begin() + static_cast<long>(i));
  }
  ++fibre.store_groups;
}

void tma_store_wait(int pending, bool read_only) {
  Fibre& fibre = *machine.current;
  fibre.store_read_times.resize(fibre.store_groups, 0);
  for (uint32_t group = 0; group + static_cast<uint32_t>(pending) < fibre.store_groups; ++group) {
    uint32_t& time = fibre.store_read_times[group];
    if (time == 0) time = fibre.time;
  }
  for (size_t i = 0; i < machine.stores.size();) {
    Store& store = machine.stores[i];
    if (store.thread != &fibre || store.group + pending >= fibre.store_groups) {
      ++i;
      continue;
    }
    read_source(store);
    if (read_only) {
      ++i;
      continue;
    }
    write_target(store);
    machine.stores.erase(machine.stores.begin() + static_cast<long>(i));
  }
}

void finish_stores() {
  while (!machine.stores.empty()) {
    const size_t index = machine.schedule == Schedule::kRandom ? random_number() % machine.stores.size() : 0;
    write_target(machine.stores[index]);
    machine.stores.erase(machine.stores.begin() + static_cast<long>(index));
  }
}

void check_exit(Fibre& fibre) {
  if (fibre.last_store_group > fibre.store_groups) fail("exit", "exits with a tma_store that was never committed");
  if (fibre.last_store_group != 0) {
    const size_t last = fibre.last_store_group - 1;
    if (last >= fibre.store_read_times.size() || fibre.store_read_times[last] == 0) {
      fail("exit", "exits while its tma_store may still read shared memory: no tma_store_wait");
    }
  }
  Warpgroup& group = fibre.cta->groups[fibre.ids.thread / kGroup];
  if (fibre.wgmma_issued > group.retired) fail("exit", "exits with a wgmma that no wgmma_wait has retired");
  check_tensor_exit(fibre);
}

void check_cta_end(Cta& cta) {
  for (const Load& load : machine.loads) {
    if (load.cta == &cta)
      fail("exit", "the CTA ends before its tma_load of %s to smem+%u has landed", load.map.name, load.to);
  }
  check_tensor_end(cta);
  check_registers(cta, true);
}

}  // namespace skim_emulator
