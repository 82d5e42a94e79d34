// Shared-memory matrix descriptors of wgmma (PTX ISA, "Matrix-descriptor-format"): plain bits, no instruction.
// What TMA loads has the 128-byte swizzle, and lies in panels of 64 columns of 16 bits, or 128 of 8:
// [panel][row][128 bytes].
#pragma once
#include <skimattn/core/platform.cuh>

namespace skimattn::sm90 {

constexpr int kStepBytes = 32;  // of K in one product: 16 elements of 16 bits, or 32 of 8
constexpr uint64_t kSwizzle128B = 1ull << 62;
constexpr uint64_t kStrideOffset = uint64_t{1024 >> 4} << 32;  // between groups of 8 swizzled rows

// K-major operand (A and B of Q.K^T). The leading offset is not used by this layout; the ISA wants 1.
SKIM_DEVICE uint64_t k_major(const void* panel) {
  return (ptx::smem_address(panel) & 0x3FFFF) >> 4 | uint64_t{1} << 16 | kStrideOffset | kSwizzle128B;
}

// K-major operand that threads store: chunks of 16 bytes, [chunk][row][16 bytes], without a swizzle. A thread finds all
// that it stores at fixed distances from one address, and the eight rows of a core matrix lie in all banks.
constexpr int kChunkBytes = 16;
SKIM_DEVICE uint64_t k_major_chunks(const void* first, int rows) {
  return (ptx::smem_address(first) & 0x3FFFF) >> 4 | static_cast<uint64_t>(rows * kChunkBytes >> 4) << 16 |
         uint64_t{8 * kChunkBytes >> 4} << 32;
}

// MN-major operand (V of P.V): 64-column panels `panel_bytes` apart, keys along K.
SKIM_DEVICE uint64_t mn_major(const void* panel, int panel_bytes) {
  return (ptx::smem_address(panel) & 0x3FFFF) >> 4 | static_cast<uint64_t>(panel_bytes >> 4) << 16 | kStrideOffset |
         kSwizzle128B;
}

// The same matrix `bytes` further on. The address field cannot carry: shared memory ends below its 18 bits.
SKIM_DEVICE uint64_t advance(uint64_t descriptor, int bytes) {
  return descriptor + (static_cast<uint32_t>(bytes) >> 4);
}

// Where byte `byte` of a row lies in a swizzled panel: the 16-byte chunk is XORed with the row.
SKIM_DEVICE int swizzled_byte(int row, int byte) {
  const int offset = row * kPanelRowBytes + byte;
  return offset ^ ((offset >> 7) & 7) << 4;
}
// The same of a 16-bit element.
SKIM_DEVICE int swizzled_offset(int row, int column) { return swizzled_byte(row, column * 2); }

}  // namespace skimattn::sm90
