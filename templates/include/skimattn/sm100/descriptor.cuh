// Shared-memory and instruction descriptors of tcgen05 (PTX ISA, "tcgen05 matrix descriptors"): plain bits, no
// instruction. Operands in shared memory have the 128-byte swizzle and lie as panels: [panel][row][128 bytes].
#pragma once
#include <skimattn/core/platform.cuh>

namespace skimattn::sm100 {

constexpr uint64_t kDescriptorVersion = 1ull << 46;
constexpr uint64_t kSwizzle128B = 2ull << 61;
constexpr uint64_t kStrideOffset = uint64_t{1024 >> 4} << 32;  // between groups of 8 swizzled rows
constexpr uint64_t kSmemCommon = kDescriptorVersion | kSwizzle128B | kStrideOffset;

// K-major operand (A and B of Q.K^T). The leading offset is not used by this layout; 1 as on SM90.
SKIM_DEVICE uint64_t k_major(const void* panel) {
  return (ptx::smem_address(panel) & 0x3FFFF) >> 4 | uint64_t{1} << 16 | kSmemCommon;
}

// MN-major operand (V of P.V): panels of columns `panel_bytes` apart, keys along K.
SKIM_DEVICE uint64_t mn_major(const void* panel, int panel_bytes) {
  return (ptx::smem_address(panel) & 0x3FFFF) >> 4 | static_cast<uint64_t>(panel_bytes >> 4) << 16 | kSmemCommon;
}

// The same matrix `bytes` further on. The address field cannot carry: shared memory ends below its 18 bits.
SKIM_DEVICE uint64_t advance(uint64_t descriptor, int bytes) { return descriptor + (bytes >> 4); }

// Byte of a 16-byte chunk in a swizzled panel: the chunk's number is XORed with the row's.
SKIM_DEVICE int swizzled_chunk(int row, int chunk) { return row * kPanelRowBytes + (chunk ^ (row & 7)) * 16; }

// What A and B are, by element type: kind::f16 counts fp16, bf16; kind::f8f6f4 starts with e4m3.
template <class Element>
inline constexpr uint32_t kOperandType = 0;
template <>
inline constexpr uint32_t kOperandType<ElementBf16> = 1;

// D (M rows, N columns of float) from A (K-major) and B, both of this element type.
template <class Element, int N, bool kMnMajorB, int M = 128>
SKIM_DEVICE constexpr uint32_t instruction_descriptor() {
  static_assert((M == 64 || M == 128) && N % 16 == 0 && N >= 16 && N <= 256);
  constexpr uint32_t kFloat = 1 << 4, kTypes = kOperandType<Element> << 7 | kOperandType<Element> << 10;
  constexpr uint32_t kTransposeB = kMnMajorB ? 1 << 16 : 0;
  return kFloat | kTypes | kTransposeB | uint32_t{N >> 3} << 17 | uint32_t{M >> 4} << 24;
}

}  // namespace skimattn::sm100
