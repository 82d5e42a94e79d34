// The bits of matrix descriptors and the canonical layouts that they stand for (PTX ISA).
#include "operand.h"

namespace skim_emulator {
namespace {

uint32_t address_field(uint64_t bits, int shift) { return static_cast<uint32_t>(bits >> shift & 0x3fff) << 4; }

void check_zero(uint64_t bits, uint64_t reserved, const char* name) {
  if ((bits & reserved) == 0) return;
  fail("descriptor", "%s: reserved bits are set in %016llx", name, static_cast<unsigned long long>(bits));
}

void check_base_offset(uint64_t bits, const char* name) {
  if ((bits >> 49 & 7) == 0) return;
  fail("descriptor", "%s: expected base offset 0, as for swizzle atoms that are aligned (got %d)", name,
       static_cast<int>(bits >> 49 & 7));
}

void check_multiple(const Operand& o, const char* what, uint32_t offset) {
  const uint32_t atom = static_cast<uint32_t>(o.swizzle) * 8;
  if (offset % atom == 0) return;
  fail("descriptor", "%s: expected a %s byte offset that is a multiple of the swizzle atom's %u (got %u)", o.name, what,
       atom, offset);
}

// The swizzle works on address bits: wherever the walk goes, it must find the atoms where the copies put them.
void check_atoms(const Operand& o) {
  if (o.swizzle == 0) return;
  const uint32_t within = o.start % (static_cast<uint32_t>(o.swizzle) * 8);
  const uint32_t last = o.mn_major ? 0 : static_cast<uint32_t>(o.swizzle - kStepBytes);
  if (within > last) {
    fail("descriptor", "%s starts at smem address %u, which is %u bytes into a swizzle atom", o.name, o.start, within);
  }
  if (o.mn_major ? o.k() > 8 : o.extent > 8) check_multiple(o, "stride", o.stride);
  if (o.mn_major && o.extent * o.element_bytes > o.swizzle) check_multiple(o, "leading", o.leading);
}

}  // namespace

Operand decode_sm90(uint64_t bits, const char* name, bool mn_major, int extent, int element_bytes) {
  check_zero(bits, 3ull << 14 | 3ull << 30 | 7ull << 46 | 0x3ffull << 52, name);
  check_base_offset(bits, name);
  constexpr int kSwizzles[4] = {0, 128, 64, 32};
  const Operand operand{
      name,     bits,   address_field(bits, 0), address_field(bits, 16), address_field(bits, 32), kSwizzles[bits >> 62],
      mn_major, extent, element_bytes};
  check_atoms(operand);
  return operand;
}

Operand decode_sm100(uint64_t bits, const char* name, bool mn_major, int extent, int element_bytes) {
  check_zero(bits, 3ull << 14 | 3ull << 30 | 0xffull << 53, name);
  if ((bits >> 46 & 7) != 1) {
    fail("descriptor", "%s: expected 0b001 in bits 46-48, the version (got %d)", name,
         static_cast<int>(bits >> 46 & 7));
  }
  check_base_offset(bits, name);
  if ((bits >> 52 & 1) != 0) fail("descriptor", "%s: expected leading offsets that are relative, bit 52 clear", name);
  constexpr int kIllegal = -1, kSwizzles[8] = {0, kIllegal, 128, kIllegal, 64, kIllegal, 32, kIllegal};
  const int layout = static_cast<int>(bits >> 61), swizzle = kSwizzles[layout];
  if (swizzle == kIllegal) {
    // Note: 1 is legal on the device (128-byte swizzle of 32-byte atoms), but nothing here stores operands so.
    fail("descriptor", "%s: expected layout type 0, 2, 4 or 6 (got %d)", name, layout);
  }
  const Operand operand{
      name,     bits,   address_field(bits, 0), address_field(bits, 16), address_field(bits, 32), swizzle,
      mn_major, extent, element_bytes};
  check_atoms(operand);
  return operand;
}

uint32_t piece_address(const Operand& o, int row, int piece) {
  const uint32_t group = static_cast<uint32_t>(row / 8), in_group = static_cast<uint32_t>(row % 8);
  const uint32_t p = static_cast<uint32_t>(piece), swizzle = static_cast<uint32_t>(o.swizzle);
  if (swizzle == 0) {
    const uint32_t along = o.mn_major ? o.stride : o.leading, across = o.mn_major ? o.leading : o.stride;
    return o.start + group * across + in_group * kGranule + p * along;
  }
  const uint32_t row_pieces = swizzle / kGranule;
  const uint32_t panel = o.mn_major ? p / row_pieces : 0, in_panel = o.mn_major ? p % row_pieces : p;
  const uint32_t address = o.start + group * o.stride + in_group * swizzle + panel * o.leading + in_panel * kGranule;
  return address ^ (address >> 7 & (row_pieces - 1)) << 4;
}

void fail_outside(const Cta& cta, const Operand& operand, int64_t offset) {
  fail("out-of-bounds", "%s reads smem%+lld, outside the %d bytes of the CTA (descriptor %016llx)", operand.name,
       static_cast<long long>(offset), cta.smem_bytes, static_cast<unsigned long long>(operand.bits));
}

}  // namespace skim_emulator
