// The instruction descriptor of tcgen05.mma (PTX ISA, "Instruction descriptor"), bit by bit: kind::f16 and
// kind::f8f6f4 with float accumulators, one CTA.
#include "tensor_memory.h"

namespace skim_emulator {
namespace {

struct Field {
  const char* name;
  int shift, bits;
};
// What must be zero here: sparse operands, saturation, negation and the shift of .ws are not modelled.
constexpr Field kZero[] = {{"the sparsity selector", 0, 2}, {"sparsity", 2, 1},         {"saturation", 3, 1},
                           {"reserved bit 6", 6, 1},        {"negation of A", 13, 1},   {"negation of B", 14, 1},
                           {"reserved bit 23", 23, 1},      {"reserved bit 29", 29, 1}, {"the maximum shift", 30, 2}};

uint32_t extract(uint32_t bits, int shift, int count) { return bits >> shift & ((1u << count) - 1); }

Element element_of(uint32_t type, int element_bytes, const char* name) {
  if (element_bytes == 2 && type == 0) return Element::kFp16;
  if (element_bytes == 2 && type == 1) return Element::kBf16;
  if (element_bytes == 1 && type == 0) return Element::kE4m3;
  fail("descriptor", "instruction descriptor: type of %s: expected %s (got %u)", name,
       element_bytes == 2 ? "0 or 1, fp16 or bf16" : "0, e4m3", type);
}

void check_shape(int m, int n, int element_bytes, bool b_mn_major) {
  if (m != 64 && m != 128) fail("descriptor", "instruction descriptor: expected M 64 or 128 (got %d)", m);
  const int step = m == 128 || (element_bytes == 1 && b_mn_major) ? 16 : 8;
  if (n % step != 0 || n < step || n > kMaxN) {
    fail("descriptor", "instruction descriptor: expected N a multiple of %d up to 256 for M %d (got %d)", step, m, n);
  }
}

}  // namespace

void decode_instruction(Product& p, uint32_t bits, int element_bytes, uint64_t a, uint64_t b) {
  for (const Field& field : kZero) {
    const uint32_t value = extract(bits, field.shift, field.bits);
    if (value != 0) fail("descriptor", "instruction descriptor: expected %s to be 0 (got %u)", field.name, value);
  }
  const uint32_t d_type = extract(bits, 4, 2);
  if (d_type != 1) fail("descriptor", "instruction descriptor: type of D: expected 1, float32 (got %u)", d_type);
  p.element_bytes = element_bytes;
  p.a_type = element_of(extract(bits, 7, 3), element_bytes, "A");
  p.b_type = element_of(extract(bits, 10, 3), element_bytes, "B");
  if (p.a_type != p.b_type) fail("descriptor", "instruction descriptor: expected A and B of the same type");
  const bool a_mn_major = extract(bits, 15, 1) != 0, b_mn_major = extract(bits, 16, 1) != 0;
  p.n = static_cast<int>(extract(bits, 17, 6)) * 8;
  p.m = static_cast<int>(extract(bits, 24, 5)) * 16;
  check_shape(p.m, p.n, element_bytes, b_mn_major);
  if (p.a_in_tensor_memory) {
    if (a_mn_major) fail("descriptor", "instruction descriptor: expected a K-major A, as it is in tensor memory");
  } else {
    p.a_shared = decode_sm100(a, "operand A", a_mn_major, p.m, element_bytes);
  }
  p.b_shared = decode_sm100(b, "operand B", b_mn_major, p.n, element_bytes);
}

}  // namespace skim_emulator
