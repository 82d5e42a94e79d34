// Operands of the swapped products over 8-bit caches: K and V^T as A, straight from what copies bring to registers, and
// Q^T and P^T as B, in shared memory. All of them in fp16, whatever the type of Q: e4m3 becomes fp16 in one instruction
// a pair, and bf16 in four. P is multiplied by a power of two that makes it finer there than in bf16, and so is Q: see
// query_tile.cuh.
//
// A thread takes whole chunks of its two rows of K, and calls neighbouring bytes of them what a product wants of it: so
// all threads permute the columns of K alike, and Q is written in that order. Of V it takes words of a few columns of
// one key, so its rows of V^T are neighbours, where a product would have them 8 or 64 apart.
#pragma once
#include <skimattn/sm90/decode/operands.cuh>
#include <skimattn/sm90/decode/swapped_fragment.cuh>

namespace skimattn::sm90 {

// Where these lie, and what a unit of each row of Q^T counts: in the place of converted keys. An item may write here at
// once: whichever way the item before was computed, all warps are done with its last Q.K.
template <class Tr>
struct SwappedTiles {
  static constexpr int kPanelBytes = kSwappedRows * kPanelRowBytes;
  alignas(1024) uint8_t q[Tr::kHeadDim / 64 * kPanelBytes];
  alignas(1024) uint8_t p[Tr::kTileN / 64 * kPanelBytes];
  float q_unit[kSwappedRows];
};
// In the place of converted values, of which a product before may still read until all warps have met in this item.
struct SwappedSums {
  float of_warps[2][kSwappedRows][kGroupWarps];
};

// Values of packed rows that all warps have a part of. Two places take turns: who is in the next exchange knows that
// nobody reads the one before last.
class RowExchange {
 public:
  SKIM_DEVICE explicit RowExchange(SwappedSums& sums, int thread) : sums_(sums), thread_(thread) {}

  // This thread's parts, combined with those of the lanes that have the same rows, each of which ends up with one row.
  template <class Combine>
  SKIM_DEVICE void publish(const float (&x)[SwappedRows::kRows], Combine combine) {
    const int lane = thread_ % kWarpThreads;
    const bool second = (lane & 16) != 0, odd = (lane & 8) != 0;
    const float a = combine(second ? x[2] : x[0], ptx::shfl_xor(second ? x[0] : x[2], 16));
    const float b = combine(second ? x[3] : x[1], ptx::shfl_xor(second ? x[1] : x[3], 16));
    float one = combine(odd ? b : a, ptx::shfl_xor(odd ? a : b, 8));
    one = combine(one, ptx::shfl_xor(one, 4));
    const int row = SwappedRows::first_row(thread_) + (second ? 8 : 0) + (odd ? 1 : 0);
    if ((lane & 4) == 0) ptx::st_shared_float(&sums_.of_warps[turn_][row][thread_ / kWarpThreads], one);
  }
  // Of all warps, once they have published theirs.
  template <class Combine>
  SKIM_DEVICE void receive(float (&x)[SwappedRows::kRows], Combine combine) {
    ptx::bar_sync(kWrittenBarrier, kGroupThreads);
#pragma unroll
    for (int r = 0; r < SwappedRows::kRows; ++r) {
      float of[kGroupWarps];
      ptx::ld_shared16(sums_.of_warps[turn_][SwappedRows::first_row(thread_) + SwappedRows::row_offset(r)], of);
      x[r] = combine(combine(of[0], of[1]), combine(of[2], of[3]));
    }
    turn_ ^= 1;
  }

 private:
  SwappedSums& sums_;
  const int thread_;
  int turn_ = 0;
};

// Note: what is not always loaded before it is multiplied, as the compiler sees it, would be kept from item to item, in
// registers that the wide way needs.
template <int kParts, int kSteps>
SKIM_DEVICE void clear_fragments(uint32_t (&a)[kParts][kSteps][4]) {
#pragma unroll
  for (int i = 0; i < kParts * kSteps * 4; ++i) a[i / (4 * kSteps)][i / 4 % kSteps][i % 4] = 0;
}

// K of a tile as A operands, in products of 64 keys.
template <class Tr>
class KeyFragments {
 public:
  static constexpr int kParts = Tr::kTileN / 64, kSteps = Tr::kHeadDim / 16;
  static constexpr int kChunks =
      imin(Tr::kHeadDim, kPanelRowBytes) / 64;  // of 16 bytes, of a thread in each panel's row
  static constexpr int kPanelBytes = Tr::kTileN * kPanelRowBytes;

  SKIM_DEVICE explicit KeyFragments(int thread)
      : row_(thread / kWarpThreads * 16 + thread % kWarpThreads / 4), chunk_(thread % 4 * kChunks) {}

  SKIM_DEVICE void clear() { clear_fragments(a_); }
  SKIM_DEVICE void load(const uint8_t* tile) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int i = 0; i < kSteps / 4; ++i) {
        const uint8_t* from = tile + i / kChunks * kPanelBytes + (part * 64 + row_) * kPanelRowBytes +
                              ((chunk_ + i % kChunks) ^ row_ % 8) * 16;
        const ptx::Words4 first = ptx::ld_shared16(from), second = ptx::ld_shared16(from + 8 * kPanelRowBytes);
#pragma unroll
        for (int word = 0; word < 4; ++word) {
          uint32_t (&a)[4] = a_[part][4 * i + word];
          a[0] = ptx::widen(ElementFp16{}, first.w[word]);
          a[1] = ptx::widen(ElementFp16{}, second.w[word]);
          a[2] = ptx::widen_upper(ElementFp16{}, first.w[word]);
          a[3] = ptx::widen_upper(ElementFp16{}, second.w[word]);
        }
      }
    }
  }
  SKIM_DEVICE const uint32_t (&of(int part, int step) const)[4] { return a_[part][step]; }
  // The column of K that comes first in eight columns of Q^T: pairs of columns are 16 * kChunks apart, and so are K's.
  SKIM_DEVICE static int first_column(int eight) {
    const int step = eight / 2, panel = step / (4 * kChunks);
    return panel * kPanelRowBytes + step % (4 * kChunks) * 4 + eight % 2 * 2;
  }

 private:
  const int row_, chunk_;
  uint32_t a_[kParts][kSteps][4];
};

// V^T of a tile as A operands, in products of 64 columns.
template <class Tr>
class ValueFragments {
 public:
  static constexpr int kParts = Tr::kHeadDimV / 64, kSteps = Tr::kTileN / 16;
  static constexpr int kPanelBytes = Tr::kTileN * kPanelRowBytes;
  static constexpr bool kHalfWords = kParts == 1;  // a thread has two columns, of four that it reads

  SKIM_DEVICE explicit ValueFragments(int thread) {
    const int byte = SwappedOutput<Tr::kHeadDimV>::first_column(thread);
    key_ = thread % 4 * 2;
    from_[0] = swizzled_byte(key_, byte / 4 * 4);
    from_[1] = swizzled_byte(key_ + 1, byte / 4 * 4);
    upper_ = kHalfWords && byte % 4 != 0;
  }

  SKIM_DEVICE void clear() { clear_fragments(a_); }
  // Keys outside `seen` become zeros, if kClears.
  template <bool kClears>
  SKIM_DEVICE void load(const uint8_t* tile, const Span& seen) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 2 * imax(kParts / 2, 1); ++i) {
        const int panel = i / 2, half = i % 2, key = 16 * step + 8 * half;
        const uint8_t* from = tile + panel * kPanelBytes + key * kPanelRowBytes;
        uint32_t word[2] = {ptx::ld_shared(from + from_[0]), ptx::ld_shared(from + from_[1])};
        if constexpr (kClears) {
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            if (key + key_ + k < seen.lo || key + key_ + k >= seen.hi) word[k] = 0;
          }
        }
        if constexpr (kHalfWords) {
          widen_pairs(ptx::prmt(word[0], word[1], upper_ ? kUpper : kLower), half, a_[0][step]);
        } else {
          widen_pairs(ptx::prmt(word[0], word[1], kLower), half, a_[2 * panel][step]);
          widen_pairs(ptx::prmt(word[0], word[1], kUpper), half, a_[2 * panel + 1][step]);
        }
      }
    }
  }
  SKIM_DEVICE const uint32_t (&of(int part, int step) const)[4] { return a_[part][step]; }

 private:
  // Two columns of two keys: a column's keys next to each other.
  static constexpr uint32_t kLower = 0x5140, kUpper = 0x7362;
  SKIM_DEVICE static void widen_pairs(uint32_t pairs, int half, uint32_t (&a)[4]) {
    a[2 * half] = ptx::widen(ElementFp16{}, pairs);
    a[2 * half + 1] = ptx::widen_upper(ElementFp16{}, pairs);
  }

  int key_, from_[2];
  bool upper_;
  uint32_t a_[kParts][kSteps][4];
};

}  // namespace skimattn::sm90
