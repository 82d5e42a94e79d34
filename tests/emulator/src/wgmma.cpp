// Warpgroup matrix products. Operands come through the descriptor bits from swizzled shared memory; accumulators are
// out of reach (poisoned) from issue until the wait that retires the group.
#include <cstring>

#include "operand.h"

namespace skim_emulator {
namespace {

constexpr int kM = 64, kMostK = kStepBytes;  // elements of K in one product: 16, or 32 of 8 bits
// A signalling NaN: any arithmetic on it leaves a quiet one, so even `d *= x` shows.
constexpr uint32_t kPoisonBits = 0x7f85a5a5;

int bytes_of(Element element) { return element == Element::kE4m3 ? 1 : 2; }
Operand operand_a(const Wgmma& op) {
  return decode_sm90(op.a_descriptor, "operand A", false, kM, bytes_of(op.element));
}
Operand operand_b(const Wgmma& op) {
  return decode_sm90(op.b_descriptor, "operand B", op.b_mn_major, op.n, bytes_of(op.element));
}

// Operands as stored: A [64][k] first (absent if it comes from registers), then B [n][k] or, MN-major, [k][n].
void gather(Cta& cta, const Wgmma& op, uint8_t* bytes) {
  const auto copy_to = [&](uint8_t* to) {
    return [&cta, to](uint32_t offset, int at) { std::memcpy(to + at, cta.smem + offset, kGranule); };
  };
  if (!op.registers) for_each_piece(cta, operand_a(op), copy_to(bytes));
  for_each_piece(cta, operand_b(op), copy_to(bytes + kM * kStepBytes));
}

template <class Visit>
void for_each_operand_piece(Cta& cta, const Wgmma& op, Visit visit) {
  const auto piece = [&](uint32_t offset, int) { visit(offset); };
  if (!op.registers) for_each_piece(cta, operand_a(op), piece);
  for_each_piece(cta, operand_b(op), piece);
}

// Marks the operands as being read, or, with the wait that ended it, as read.
void begin_reads(Cta& cta, const Wgmma& op) {
  for_each_operand_piece(cta, op, [&](uint32_t offset) {
    check_async_read(cta, offset, op.clocks, "wgmma");
    ++cta.granules[offset / kGranule].mma_reads;
  });
}
void end_reads(Cta& cta, const Wgmma& op, size_t group) {
  const auto wait = static_cast<uint32_t>(cta.groups[group].wait_times.size());
  for_each_operand_piece(cta, op, [&](uint32_t offset) {
    Granule& granule = cta.granules[offset / kGranule];
    --granule.mma_reads;
    granule.mma_waits[group] = wait;
  });
}

// Element `at` of operands as they are stored.
template <Element kElement>
float to_float(const uint8_t* bytes, int at) {
  if constexpr (kElement == Element::kE4m3) return from_e4m3(bytes[at]);
  uint16_t bits;
  std::memcpy(&bits, bytes + 2 * at, 2);
  return kElement == Element::kBf16 ? from_bf16(bits) : from_fp16(bits);
}

// Element i of thread t's fragment lies in this row and column of the 64 x n tile.
int fragment_row(int t, int i) { return t / 32 * 16 + t % 32 / 4 + (i >> 1 & 1) * 8; }
int fragment_column(int t, int i) { return (i >> 2) * 8 + t % 4 * 2 + (i & 1); }

// Where element i of thread t's A registers lies in the 64 x k operand (PTX ISA, "Register Fragments for
// wgmma.mma_async.m64nNk16" and "k32"): words go row, row + 8, then the same of the second half of k. In a word a
// thread has neighbours along k, as many as fit.
int a_row(int t, int i, int per_word) { return t / 32 * 16 + t % 32 / 4 + (i / per_word & 1) * 8; }
int a_column(int t, int i, int per_word) { return i / (2 * per_word) * 4 * per_word + t % 4 * per_word + i % per_word; }

void multiply(const float* a, const float* b, float* c, int n, int depth) {
  for (int row = 0; row < kM; ++row) {
    float* __restrict line = c + row * n;
    for (int k = 0; k < depth; ++k) {
      const float x = a[row * depth + k];
      const float* __restrict y = b + k * n;
      for (int j = 0; j < n; ++j) line[j] += x * y[j];
    }
  }
}

template <Element kElement>
void compute_with(Wgmma& op) {
  static float a[kM * kMostK], b[kMostK * kMaxN];
  constexpr int kSize = kElement == Element::kE4m3 ? 1 : 2, kDepth = kStepBytes / kSize, kPerWord = 4 / kSize;
  const uint8_t *const bytes = op.operands.data(), *const bytes_b = bytes + kM * kStepBytes;
  if (op.registers) {
    for (int t = 0; t < kGroup; ++t) {
      const auto* words = reinterpret_cast<const uint8_t*>(op.a_values[t]);
      for (int i = 0; i < 4 * kPerWord; ++i) {
        a[a_row(t, i, kPerWord) * kDepth + a_column(t, i, kPerWord)] = to_float<kElement>(words, i);
      }
    }
  } else {
    for (int i = 0; i < kM * kDepth; ++i) a[i] = to_float<kElement>(bytes, i);
  }
  for (int k = 0; k < kDepth; ++k) {
    for (int j = 0; j < op.n; ++j) {
      b[k * op.n + j] = to_float<kElement>(bytes_b, op.b_mn_major ? k * op.n + j : j * kDepth + k);
    }
  }
  if (!op.accumulate) std::memset(op.tile->c, 0, sizeof(float) * kM * op.n);
  multiply(a, b, op.tile->c, op.n, kDepth);
  op.computed = true;
}

void compute(Wgmma& op) {
  switch (op.element) {
    case Element::kBf16:
      return compute_with<Element::kBf16>(op);
    case Element::kFp16:
      return compute_with<Element::kFp16>(op);
    case Element::kE4m3:
      return compute_with<Element::kE4m3>(op);
  }
}

AccumulatorTile* find_tile(Warpgroup& group, int t, const float* d) {
  for (AccumulatorTile* tile : group.tiles) {
    if (tile->taken[t] && tile->d[t] == d) return tile;
  }
  return nullptr;
}

// Copies the accumulators of thread t into the tile and poisons them.
void take(AccumulatorTile& tile, int t, float* d) {
  for (int i = 0; i < tile.n / 2; ++i) {
    tile.c[fragment_row(t, i) * tile.n + fragment_column(t, i)] = d[i];
    std::memcpy(&d[i], &kPoisonBits, 4);
  }
  tile.d[t] = d;
  tile.taken[t] = true;
}

void give_back(AccumulatorTile& tile, Cta& cta, int first_thread) {
  for (int t = 0; t < kGroup; ++t) {
    float* d = tile.d[t];
    for (int i = 0; i < tile.n / 2; ++i) {
      if (std::memcmp(&d[i], &kPoisonBits, 4) != 0) {
        machine.current = &cta.fibres[static_cast<size_t>(first_thread + t)];
        fail("register", "accumulator register %d was written between a wgmma and its wgmma_wait", i);
      }
      d[i] = tile.c[fragment_row(t, i) * tile.n + fragment_column(t, i)];
    }
  }
}

void retire(Cta& cta, Warpgroup& group, int first_thread) {
  Wgmma* op = group.ops.front();
  static std::vector<uint8_t> now;
  now.assign(op->operands.size(), 0);
  gather(cta, *op, now.data());
  if (now != op->operands) fail("early-overwrite", "shared memory operands of a wgmma changed before its wgmma_wait");
  for (int t = 0; op->registers && t < kGroup; ++t) {
    if (std::memcmp(op->a[t], op->a_values[t], 16) != 0) {
      machine.current = &cta.fibres[static_cast<size_t>(first_thread + t)];
      fail("register", "A registers of a wgmma were written before its wgmma_wait");
    }
  }
  if (!op->computed) compute(*op);
  end_reads(cta, *op, static_cast<size_t>(first_thread / kGroup));
  AccumulatorTile* tile = op->tile;
  if (--tile->pending == 0) {
    give_back(*tile, cta, first_thread);
    std::erase(group.tiles, tile);
    delete tile;
  }
  delete op;
  group.ops.erase(group.ops.begin());
  ++group.retired;
}

// All 128 threads have issued it: from here on the hardware may read its operands.
void issue(Cta& cta, Wgmma& op) {
  op.operands.assign(static_cast<size_t>((kM + op.n) * kStepBytes), 0);
  begin_reads(cta, op);
  gather(cta, op, op.operands.data());
  if (machine.schedule == Schedule::kEarly || (machine.schedule == Schedule::kRandom && chance(2))) {
    for (Wgmma* earlier : cta.groups[static_cast<size_t>(machine.current->ids.thread / kGroup)].ops) {
      if (!earlier->computed) compute(*earlier);
      if (earlier == &op) break;
    }
  }
}

}  // namespace

void wgmma(float* d, int n, Element element, const uint32_t* a, uint64_t a_descriptor, uint64_t b_descriptor,
           bool accumulate, bool b_mn_major) {
  Fibre& fibre = *machine.current;
  Cta& cta = *fibre.cta;
  const int t = fibre.ids.thread % kGroup;
  Warpgroup& group = cta.groups[static_cast<size_t>(fibre.ids.thread / kGroup)];
  if (!fibre.wgmma_fenced)
    fail("fence", "wgmma without a wgmma_fence since its registers were last free to be written");
  AccumulatorTile* const in_flight = find_tile(group, t, d);
  const size_t index = fibre.wgmma_issued++ - group.retired;
  if (index == group.ops.size()) {
    AccumulatorTile* tile = in_flight;
    if (tile == nullptr) {
      tile = new AccumulatorTile{};
      tile->n = n;
      group.tiles.push_back(tile);
    }
    ++tile->pending;
    group.ops.push_back(new Wgmma{n,
                                  0,
                                  fibre.wgmma_groups,
                                  element,
                                  a != nullptr,
                                  accumulate,
                                  b_mn_major,
                                  false,
                                  a_descriptor,
                                  b_descriptor,
                                  tile,
                                  {},
                                  {},
                                  {},
                                  {}});
  }
  Wgmma& op = *group.ops[index];
  if (op.n != n || op.element != element || op.registers != (a != nullptr) || op.accumulate != accumulate ||
      op.b_mn_major != b_mn_major || op.a_descriptor != a_descriptor || op.b_descriptor != b_descriptor ||
      op.group != fibre.wgmma_groups) {
    fail("wgmma",
         "the threads of a warpgroup disagree on a wgmma (descriptors %016llx %016llx, others %016llx %016llx)",
         static_cast<unsigned long long>(a_descriptor), static_cast<unsigned long long>(b_descriptor),
         static_cast<unsigned long long>(op.a_descriptor), static_cast<unsigned long long>(op.b_descriptor));
  }
  if (in_flight == nullptr) {
    if (op.tile->taken[t]) fail("wgmma", "the threads of a warpgroup disagree on the accumulators of a wgmma");
    take(*op.tile, t, d);
  } else if (in_flight != op.tile || op.tile->n != n) {
    fail("wgmma", "the threads of a warpgroup disagree on the accumulators of a wgmma");
  }
  if (a != nullptr) {
    op.a[t] = a;
    std::memcpy(op.a_values[t], a, sizeof op.a_values[t]);
  }
  if (op.clocks.empty() || op.clocks.back() != fibre.clock) op.clocks.push_back(fibre.clock);
  if (++op.issued == kGroup) issue(cta, op);
}

void wgmma_fence() { machine.current->wgmma_fenced = true; }

void wgmma_commit() { ++machine.current->wgmma_groups; }

void wgmma_wait(int pending) {
  Fibre& fibre = *machine.current;
  Cta& cta = *fibre.cta;
  const int group_index = fibre.ids.thread / kGroup;
  Warpgroup& group = cta.groups[static_cast<size_t>(group_index)];
  fibre.wgmma_fenced = false;
  if (group.waiting++ == 0) group.wait_pending = pending;
  if (group.wait_pending != pending) fail("wgmma", "the threads of a warpgroup wait with different counts");
  if (group.waiting < kGroup) {
    Wait wait{Wait::kWgmma};
    wait.id = pending;
    return block(wait);
  }
  group.waiting = 0;
  auto& times = group.wait_times.emplace_back();
  for (int t = 0; t < kGroup; ++t)
    times[static_cast<size_t>(t)] = cta.fibres[static_cast<size_t>(group_index * kGroup + t)].time;
  while (!group.ops.empty() && group.ops.front()->group + pending < fibre.wgmma_groups) {
    if (group.ops.front()->issued != kGroup) {
      fail("wgmma", "wgmma_wait, but only %d threads of the warpgroup issued the wgmma", group.ops.front()->issued);
    }
    retire(cta, group, group_index * kGroup);
  }
  for (int t = 0; t < kGroup; ++t) {
    Fibre& other = cta.fibres[static_cast<size_t>(group_index * kGroup + t)];
    if (&other != &fibre) wake(other);
  }
}

}  // namespace skim_emulator
