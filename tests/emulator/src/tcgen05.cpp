// Products of tcgen05: one thread issues them, they execute in its order at some later time, and a commit tells an
// mbarrier when all before it are done.
#include <algorithm>
#include <cstring>

#include "tensor_memory.h"

namespace skim_emulator {
namespace {

constexpr int kOperandColumns = 8;  // of A in tensor memory: 32 bytes of K

// Band of lanes that holds rows [16 i, 16 i + 16) of D and A: all of them for M 128, the first half of each warp's for
// M 64.
int band_of(const Product& product, int i) { return product.m == kLanes ? i : 2 * i; }

int issuer_of(Fibre& fibre) {
  TensorMemory& memory = tensor_memory(*fibre.cta);
  for (int i = 0; i < kMaxIssuers; ++i) {
    Issuer& issuer = memory.issuers[i];
    if (issuer.thread == nullptr) issuer.thread = &fibre;
    if (issuer.thread == &fibre) return i;
  }
  fail("resource", "more than %d threads of a CTA issue tcgen05_mma or tcgen05_commit", kMaxIssuers);
}

// What makes two products of one thread an ordered pair.
uint32_t signature_of(const Product& p) {
  return p.d | static_cast<uint32_t>(p.n) << 12 | static_cast<uint32_t>(p.m) << 22 |
         static_cast<uint32_t>(p.element_bytes) << 30;
}

template <class Visit>
void for_each_shared_piece(const Cta& cta, const Product& product, Visit visit) {
  const auto piece = [&](uint32_t offset, int) { visit(offset); };
  if (!product.a_in_tensor_memory) for_each_piece(cta, product.a_shared, piece);
  for_each_piece(cta, product.b_shared, piece);
}

void check_and_note(Fibre& fibre, Access& access, const Product& p) {
  Cta& cta = *fibre.cta;
  TensorMemory& memory = *cta.tensor;
  const int issuer = access.issuer;
  for_each_shared_piece(cta, p, [&](uint32_t offset) {
    check_product_read(fibre, offset);
    Granule& granule = cta.granules[offset / kGranule];
    ++granule.product_reads;
    granule.products[issuer] = p.sequence;
  });
  const uint32_t signature = signature_of(p);
  for (int i = 0; i < p.m / kBand; ++i) {
    const int band = band_of(p, i);
    for (uint32_t column = p.a; p.a_in_tensor_memory && column < p.a + kOperandColumns; ++column) {
      check_read(access, band, static_cast<int>(column));
      Cell& cell = memory.cells[band][column];
      cell.read = true;
      cell.products[issuer] = p.sequence;
    }
    for (uint32_t column = p.d; column < p.d + static_cast<uint32_t>(p.n); ++column) {
      Cell& cell = memory.cells[band][column];
      if (p.accumulate && cell.written == Cell::kNobody) {
        fail("tensor-memory", "tcgen05_mma accumulates onto column %u, lanes %d to %d, which nobody has written",
             column, band * kBand, band * kBand + kBand - 1);
      }
      check_write(access, band, static_cast<int>(column), signature);
      note_write(cell, Cell::kProduct, issuer, p.sequence, signature);
    }
  }
}

float element(Element type, const uint8_t* at) {
  uint16_t pair;
  switch (type) {
    case Element::kE4m3:
      return from_e4m3(*at);
    case Element::kBf16:
      std::memcpy(&pair, at, 2);
      return from_bf16(pair);
    case Element::kFp16:
      std::memcpy(&pair, at, 2);
      return from_fp16(pair);
  }
  return 0.0f;
}

// An operand from shared memory: `out` strides by `step_mn` along m or n and by `step_k` along k.
void read_shared(const Cta& cta, const Operand& operand, Element type, float* out, int step_mn, int step_k) {
  const int per_piece = kGranule / operand.element_bytes;
  const int line = operand.mn_major ? operand.extent : operand.k();
  for_each_piece(cta, operand, [&](uint32_t offset, int byte) {
    const int first = byte / operand.element_bytes, row = first / line, column = first % line;
    for (int i = 0; i < per_piece; ++i) {
      const int mn = operand.mn_major ? column + i : row, k = operand.mn_major ? row : column + i;
      out[mn * step_mn + k * step_k] = element(type, cta.smem + offset + i * operand.element_bytes);
    }
  });
}

void read_tensor_memory(const TensorMemory& memory, const Product& p, float* out, int k) {
  for (int row = 0; row < p.m; ++row) {
    const int lane = band_of(p, row / kBand) * kBand + row % kBand;
    const auto* bytes = reinterpret_cast<const uint8_t*>(&memory.words[lane][p.a]);
    for (int i = 0; i < k; ++i) out[row * k + i] = element(p.a_type, bytes + i * p.element_bytes);
  }
}

void arrive(Cta& cta, Commit& commit) {
  commit.phases = arrive_async(cta, cta.mbarriers[static_cast<size_t>(commit.barrier_index)], commit.carried);
}

void drain(Cta& cta, Issuer& issuer) {
  while (run_step(cta, issuer)) {
  }
}

}  // namespace

void execute(Cta& cta, const Product& p) {
  TensorMemory& memory = *cta.tensor;
  static float a[kLanes * kStepBytes], b[kMaxN * kStepBytes];
  const int k = kStepBytes / p.element_bytes;
  if (p.a_in_tensor_memory) {
    read_tensor_memory(memory, p, a, k);
  } else {
    read_shared(cta, p.a_shared, p.a_type, a, k, 1);
  }
  read_shared(cta, p.b_shared, p.b_type, b, 1, p.n);
  for (int row = 0; row < p.m; ++row) {
    const int lane = band_of(p, row / kBand) * kBand + row % kBand;
    float sums[kMaxN];
    std::memcpy(sums, &memory.words[lane][p.d], 4u * p.n);
    if (!p.accumulate) std::fill_n(sums, p.n, 0.0f);
    for (int i = 0; i < k; ++i) {
      const float x = a[row * k + i];
      const float* __restrict line = b + i * p.n;
      for (int j = 0; j < p.n; ++j) sums[j] += x * line[j];
    }
    std::memcpy(&memory.words[lane][p.d], sums, 4u * p.n);
  }
}

void tcgen05_mma(uint32_t d, uint64_t a, bool a_in_tensor_memory, uint64_t b, uint32_t instruction, bool accumulate,
                 int element_bytes) {
  Fibre& fibre = *machine.current;
  Cta& cta = *fibre.cta;
  const int index = issuer_of(fibre);
  Issuer& issuer = cta.tensor->issuers[index];
  Product p{};
  p.sequence = issuer.issued + 1;
  p.d = d;
  p.a = static_cast<uint32_t>(a);
  p.a_in_tensor_memory = a_in_tensor_memory;
  p.accumulate = accumulate;
  decode_instruction(p, instruction, element_bytes, a, b);
  if (d >> 16 != 0 || (a_in_tensor_memory && a >> 16 != 0)) {
    fail("tensor-memory", "tcgen05_mma: expected lane 0 in the addresses of tensor memory (got D %08x, A %08llx)", d,
         static_cast<unsigned long long>(a_in_tensor_memory ? a : 0));
  }
  Access access = access_of_issuer(cta, index, "tcgen05_mma");
  check_allocated(access, d, p.n, "D of a tcgen05_mma");
  if (a_in_tensor_memory) {
    check_allocated(access, p.a, kOperandColumns, "A of a tcgen05_mma");
    if (p.a < d + static_cast<uint32_t>(p.n) && d < p.a + kOperandColumns) {
      fail("tensor-memory", "tcgen05_mma: A at column %u lies in D at %u", p.a, d);
    }
  }
  check_and_note(fibre, access, p);
  ++issuer.issued;
  issuer.carried = fibre.tensor_clock;
  issuer.queue.push_back({false, p, 0});
  ++machine.steps;
  if (machine.schedule == Schedule::kEarly || (machine.schedule == Schedule::kRandom && chance(8))) {
    drain(cta, issuer);
  }
}

void tcgen05_commit(uint64_t* pointer) {
  Fibre& fibre = *machine.current;
  Cta& cta = *fibre.cta;
  Issuer& issuer = cta.tensor->issuers[issuer_of(fibre)];
  const Mbarrier& barrier = find_mbarrier(cta, pointer, "tcgen05_commit");
  issuer.commits.push_back({issuer.issued, barrier.offset, index_of(cta, barrier), issuer.carried, 0});
  issuer.queue.push_back({true, {}, static_cast<uint32_t>(issuer.commits.size() - 1)});
  ++machine.steps;
  if (machine.schedule == Schedule::kEarly || (machine.schedule == Schedule::kRandom && chance(4))) {
    drain(cta, issuer);
  }
}

bool run_step(Cta& cta, Issuer& issuer) {
  if (issuer.queue.empty()) return false;
  const Step step = issuer.queue.front();
  issuer.queue.pop_front();
  --machine.steps;
  if (step.commit) {
    arrive(cta, issuer.commits[step.commit_index]);
    return true;
  }
  execute(cta, step.product);
  for_each_shared_piece(cta, step.product, [&](uint32_t offset) { --cta.granules[offset / kGranule].product_reads; });
  issuer.done = step.product.sequence;
  return true;
}

void tcgen05_fence_before_thread_sync() {
  Fibre& fibre = *machine.current;
  fibre.before_times.push_back(++fibre.time);
}

void tcgen05_fence_after_thread_sync() { machine.current->tensor_clock = machine.current->clock; }

}  // namespace skim_emulator
