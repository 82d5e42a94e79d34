// Tiles of 8-bit elements, as copies leave them, to tiles of 16 bits, as products read them: both in swizzled panels of
// 128 bytes a row, so a panel becomes two. By the whole consumer warpgroup.
//
// A thread takes 16 columns at a time, of the same columns of every 16th row (every 32nd where half of a panel is
// empty). Eight neighbours access shared memory together; they take halves of two rows so that neither the 16 bytes
// that each reads nor any of the 16 that it writes lie in another's banks.
#pragma once
#include <skimattn/core/decode_work.cuh>

namespace skimattn::sm90 {

// `kBatch` of a thread's 16 columns are converted at a time: each takes four registers, and hides the latency of
// others.
template <class To, int kColumns, int kRows, int kBatch>
class TileConverter {
 public:
  static constexpr int kChunkBytes = 16;  // 16 columns in, twice as much out
  static constexpr int kPerRow = imin(kColumns, kPanelRowBytes) / kChunkBytes;
  static constexpr int kPanelBytes = kRows * kPanelRowBytes, kPanels = ceil_div(kColumns, kPanelRowBytes);
  static constexpr int kRowStep = kGroupThreads / kPerRow, kSteps = kRows / kRowStep;
  static_assert(kPerRow == 8 || kPerRow == 4);
  static_assert(kRowStep % 8 == 0, "the swizzle of a thread's rows is the same");

  // `thread` of the warpgroup. Note: opaque, or the places below would be kept in registers throughout the kernel.
  SKIM_DEVICE explicit TileConverter(int thread) {
    const int here = ptx::opaque(thread), index = here / kPerRow, chunk = here % kPerRow;
    row_ = kPerRow == 8 ? index ^ (chunk >> 2) : index ^ (index & 1) << 2;
    const int row_bytes = row_ * kPanelRowBytes, swizzle = row_ & 7;
    from_ = row_bytes + (chunk ^ swizzle) * kChunkBytes;
    to_ = chunk / 4 * kPanelBytes + row_bytes + (chunk % 4 * 2 ^ swizzle) * kChunkBytes;
  }

  // Rows outside `seen` become zeros, if kClears.
  template <bool kClears>
  SKIM_DEVICE void convert(const uint8_t* from, uint8_t* to, const Span& seen) const {
#pragma unroll 1
    for (int part = 0; part < kPanels * kSteps / kBatch; ++part) {
      const int panel = part / (kSteps / kBatch), first = part % (kSteps / kBatch) * kBatch;
      // Note: all are read before the first is written, since stores and loads keep their order.
      ptx::Words4 chunks[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        chunks[i] = ptx::ld_shared16(from + panel * kPanelBytes + from_ + (first + i) * kRowStep * kPanelRowBytes);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int row = row_ + (first + i) * kRowStep;
        if (kClears && (row < seen.lo || row >= seen.hi)) chunks[i] = {};
        // Note: the swizzle keeps the two chunks of the result next to each other, in either order.
        uint8_t* const rows = to + 2 * panel * kPanelBytes + (first + i) * kRowStep * kPanelRowBytes;
        store(chunks[i], rows + to_, rows + (to_ ^ kChunkBytes));
      }
    }
  }

 private:
  SKIM_DEVICE static void store(const ptx::Words4& chunk, uint8_t* first, uint8_t* second) {
    uint32_t wide[8];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      wide[2 * i] = ptx::widen(To{}, chunk.w[i]);
      wide[2 * i + 1] = ptx::widen(To{}, chunk.w[i] >> 16);
    }
    ptx::st_shared16(first, wide[0], wide[1], wide[2], wide[3]);
    ptx::st_shared16(second, wide[4], wide[5], wide[6], wide[7]);
  }

  int row_, from_, to_;
};

}  // namespace skimattn::sm90
