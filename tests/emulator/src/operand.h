// Where a matrix descriptor finds its operand in shared memory. One walk for wgmma and tcgen05.mma: the two differ in
// how the bits are laid out, not in where the elements lie.
#pragma once
#include "state.h"

namespace skim_emulator {

constexpr int kStepBytes = 32;  // of K in one product, whatever the element: 16 x 2 or 32 x 1

// A decoded matrix descriptor together with what the instruction says about its operand.
struct Operand {
  const char* name;  // "operand A" or "operand B"
  uint64_t bits;     // undecoded, for messages
  uint32_t start, leading, stride;
  int swizzle;  // bytes: 128, 64, 32; 0 = none
  bool mn_major;
  int extent;  // m or n
  int element_bytes;

  int k() const { return kStepBytes / element_bytes; }
  int bytes() const { return extent * kStepBytes; }
};

// Each fails on bits that the architecture does not define, and on starts and offsets inside a swizzle atom.
Operand decode_sm90(uint64_t bits, const char* name, bool mn_major, int extent, int element_bytes);
Operand decode_sm100(uint64_t bits, const char* name, bool mn_major, int extent, int element_bytes);

// Shared-memory address of a 16-byte piece. K-major: `row` counts m or n, `piece` along k. MN-major: `row` counts k,
// `piece` along m or n.
uint32_t piece_address(const Operand& operand, int row, int piece);
[[noreturn]] void fail_outside(const Cta& cta, const Operand& operand, int64_t offset);

// Visits an operand in the order [m or n][k] if K-major, [k][m or n] if MN-major: visit(offset in shared memory of a
// 16-byte piece, its byte in that order).
template <class Visit>
void for_each_piece(const Cta& cta, const Operand& operand, Visit visit) {
  const int rows = operand.mn_major ? operand.k() : operand.extent;
  const int pieces = operand.bytes() / rows / kGranule;
  for (int row = 0; row < rows; ++row) {
    for (int piece = 0; piece < pieces; ++piece) {
      const int64_t offset = static_cast<int64_t>(piece_address(operand, row, piece)) - kSmemBase;
      if (offset < 0 || offset + kGranule > cta.smem_bytes) fail_outside(cta, operand, offset);
      visit(static_cast<uint32_t>(offset), (row * pieces + piece) * kGranule);
    }
  }
}

}  // namespace skim_emulator
