// Q^T of up to 16 packed rows as the B operand of swapped products, in fp16.
//
// bf16 has the exponents of float, and fp16 has few: each row is multiplied by the power of two that brings its largest
// element just below the largest fp16. Then all that are more than 2^-32 of that one keep all their bits; what is
// smaller is rounded to 2^-40 of it. The scores are divided again, which is exact.
#pragma once
#include <skimattn/sm90/decode/swapped_operands.cuh>

namespace skimattn::sm90 {

// Whether elements of Q may leave the range of fp16.
template <class ElementQ>
inline constexpr bool kExceedsFp16 = false;
template <>
inline constexpr bool kExceedsFp16<ElementBf16> = true;

template <class Tr>
class QueryTile {
 public:
  using Storage = DecodeStorage<Tr>;
  using ElementQ = typename Tr::ElementQ;
  static constexpr int kRowThreads = kGroupThreads / kSwappedRows, kChunks = Tr::kHeadDim / 8 / kRowThreads;
  static constexpr int kBytes = sizeof(typename ElementQ::Storage);
  static constexpr bool kScales = kExceedsFp16<ElementQ>;

  // By the whole warpgroup: writes `to`, and what one unit of each row counts to `units`, if kScales.
  SKIM_DEVICE static void write(Storage& smem, uint8_t* to, float* units, int thread) {
    const int row = thread / kRowThreads, place = thread % kRowThreads;
    uint32_t words[kChunks][4];
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
#pragma unroll
      for (int word = 0; word < 4; ++word) {
        const int column =
            KeyFragments<Tr>::first_column(i * kRowThreads + place) + word * 16 * KeyFragments<Tr>::kChunks;
        words[i][word] = load_pair(smem, row, column);
        if constexpr (kScales) {
          largest = ptx::max_nan(largest, fabsf(low(words[i][word])));
          largest = ptx::max_nan(largest, fabsf(high(words[i][word])));
        }
      }
    }
    float scale = 1.0f;
    if constexpr (kScales) {
#pragma unroll
      for (int lanes = 1; lanes < kRowThreads; lanes *= 2)
        largest = ptx::max_nan(largest, ptx::shfl_xor(largest, lanes));
      const uint32_t exponent = imax(__builtin_bit_cast(uint32_t, largest) >> 23, kTopExponent + 1);
      scale = __builtin_bit_cast(float, (2 * kBias + kTopExponent - exponent) << 23);
      if (place == 0) {
        ptx::st_shared_float(units + row, __builtin_bit_cast(float, (exponent - kTopExponent) << 23));
      }
    }
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
#pragma unroll
      for (int word = 0; word < 4; ++word) words[i][word] = in_fp16(words[i][word], scale);
      const int eight = i * kRowThreads + place;
      uint8_t* panel = to + eight / 8 * SwappedTiles<Tr>::kPanelBytes;
      ptx::st_shared16(panel + swizzled_byte(row, eight % 8 * 16), words[i][0], words[i][1], words[i][2], words[i][3]);
    }
  }

 private:
  static constexpr uint32_t kBias = 127, kTopExponent = 15;  // of float; of fp16

  // Two neighbouring columns, in the lower half of a word if they have 8 bits.
  SKIM_DEVICE static uint32_t load_pair(Storage& smem, int row, int column) {
    const int byte = column * kBytes;
    const uint8_t* panel = smem.q() + byte / kPanelRowBytes * Storage::kQPanelBytes;
    const uint32_t word = ptx::ld_shared(panel + swizzled_byte(row, byte % kPanelRowBytes / 4 * 4));
    return kBytes == 1 ? word >> byte % 4 * 8 : word;
  }
  SKIM_DEVICE static float low(uint32_t pair) { return __builtin_bit_cast(float, pair << 16); }
  SKIM_DEVICE static float high(uint32_t pair) { return __builtin_bit_cast(float, pair & 0xffff0000u); }
  SKIM_DEVICE static uint32_t in_fp16(uint32_t pair, float scale) {
    if constexpr (kScales) {
      return ptx::pack(ElementFp16{}, low(pair) * scale, high(pair) * scale);
    } else if constexpr (kBytes == 1) {
      return ptx::widen(ElementFp16{}, pair);
    } else {
      return pair;
    }
  }
};

}  // namespace skimattn::sm90
