// Online softmax of one row, held by one thread, over raw (unscaled) scores. Exponentials are measured from `base`,
// which follows the running maximum only when it has fallen far behind, so that O rarely has to be rescaled.
#pragma once
#include <skimattn/core/descale.cuh>
#include <skimattn/core/pack.cuh>

namespace skimattn::sm100 {

constexpr float kNan = __builtin_bit_cast(float, 0x7fffffffu);

// How far, in powers of two, a maximum may rise above the base. 8-bit elements have too little range for it.
template <class Element>
inline constexpr float kSlack = sizeof(typename Element::Storage) == 1 ? 0.0f : 8.0f;

struct RowState {
  float max = -kInf;   // raw score, over the kept tiles: what the skip rule compares with
  float base = -kInf;  // raw score; NaN where max is +inf or NaN
  float sum = 0.0f;
};

// The largest score; NaN if one is NaN. Four chains: the latency of one alone would show.
template <int kSize>
SKIM_DEVICE float row_maximum(const float (&s)[kSize]) {
  float chains[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) chains[c] = ptx::max_nan(s[2 * c], s[2 * c + 1]);
#pragma unroll
  for (int i = 8; i < kSize; i += 8) {
#pragma unroll
    for (int c = 0; c < 4; ++c) chains[c] = ptx::max3_nan(chains[c], s[i + 2 * c], s[i + 2 * c + 1]);
  }
  return ptx::max_nan(ptx::max3_nan(chains[0], chains[1], chains[2]), chains[3]);
}

// Takes a kept tile's maximum in; returns what the row's output so far has to be multiplied with.
// Note: a row that has seen no key has nothing to rescale: it answers 1, so that no O is touched before a first product
// wrote it. A maximum of +inf makes the base NaN: exponentials, sum and output of the row are then NaN, as inf - inf
// is.
template <class Element>
SKIM_DEVICE float update_row_max(RowState& row, float tile_max, float scale_log2) {
  const float old = row.base;
  row.max = ptx::max_nan(row.max, tile_max);
  const bool stays = (row.max - old) * scale_log2 <= kSlack<Element>;  // false if a NaN is involved
  if (!stays) row.base = row.max == kInf ? kNan : row.max;
  return old == -kInf ? 1.0f : ptx::ex2((old - row.base) * scale_log2);
}

// 2^x of two numbers without the exponential unit, for x < 127; below -127 it is 0. x = n + f with n the nearest
// integer (adding 1.5 * 2^23 leaves it in the low bits); 2^f is a cubic, minimax in relative error on [-1/2, 1/2] with
// p(0) = 1 (found with Lawson's iteration): at most 1.02e-4 off, a fortieth of a bf16's and a fifth of an fp16's last
// place. Note: p(0) must not be below 1: at x = -127 the exponent would wrap.
SKIM_DEVICE ptx::Float2 exp2_of_pair(ptx::Float2 x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
  constexpr float kC1 = 0.69328290f, kC2 = 0.24221097f, kC3 = 0.055008933f;
  x = {fmaxf(x.x, -127.0f), fmaxf(x.y, -127.0f)};
  const ptx::Float2 shifted = ptx::add2(x, {kMagic, kMagic});
  const ptx::Float2 whole = ptx::add2(shifted, {-kMagic, -kMagic});
  const ptx::Float2 f = ptx::fma2(whole, {-1.0f, -1.0f}, x);
  ptx::Float2 y = ptx::fma2(f, {kC3, kC3}, {kC2, kC2});
  y = ptx::fma2(y, f, {kC1, kC1});
  y = ptx::fma2(y, f, {1.0f, 1.0f});
  const uint32_t y0 = __builtin_bit_cast(uint32_t, y.x) + (__builtin_bit_cast(uint32_t, shifted.x) << 23);
  const uint32_t y1 = __builtin_bit_cast(uint32_t, y.y) + (__builtin_bit_cast(uint32_t, shifted.y) << 23);
  return {__builtin_bit_cast(float, y0), __builtin_bit_cast(float, y1)};
}

// Which columns' exponentials come from the multiply-add pipe, since the exponential unit alone would be slower than
// the products: every fourth pair, but none of the last 32 columns, whose latency nothing hides.
template <int kScores>
SKIM_DEVICE constexpr bool avoids_exponential_unit(int column) {
  return column / 2 % 4 == 3 && column < kScores - 32;
}

// Turns scores into probabilities and writes them, rounded to the element type, to tensor memory at `address`; adds
// them, not rounded, to the row's sum, of which `acc_scale` is what remains. kSplit: the thread holds half a row, whose
// other half lies so many columns further on; 0 = a whole one.
template <class Element, int kSplit = 0, int kScores>
SKIM_DEVICE void exp_and_pack(const float (&s)[kScores], float acc_scale, float scale_log2, RowState& row,
                              uint32_t address) {
  constexpr int kWordElements = kPerWord<Element>;
  constexpr int kWords = kScores / kWordElements < 16 ? 8 : 16;
  constexpr int kChunk = kWords * kWordElements;
  static_assert(kScores % kChunk == 0);
  // A row that has seen no key keeps base = -inf; measured from 0 its exponentials come out as 0, not NaN.
  const float offset = kGain<Element> - (row.base == -kInf ? 0.0f : row.base * scale_log2);
  ptx::Float2 sums[2] = {{0.0f, 0.0f}, {0.0f, 0.0f}};
#pragma unroll
  for (int chunk = 0; chunk < kScores; chunk += kChunk) {
    uint32_t words[kWords];
#pragma unroll
    for (int word = 0; word < kWords; ++word) {
      float e[kWordElements];
#pragma unroll
      for (int j = 0; j < kWordElements; j += 2) {
        const int i = chunk + word * kWordElements + j;
        const ptx::Float2 x = ptx::fma2({s[i], s[i + 1]}, {scale_log2, scale_log2}, {offset, offset});
        const ptx::Float2 y =
            avoids_exponential_unit<kScores>(i) ? exp2_of_pair(x) : ptx::Float2{ptx::ex2(x.x), ptx::ex2(x.y)};
        sums[i / 2 % 2] = ptx::add2(sums[i / 2 % 2], y);
        e[j] = y.x;
        e[j + 1] = y.y;
      }
      words[word] = pack_word(Element{}, e);
    }
    if constexpr (kSplit == 0) {
      ptx::tcgen05_st<kWords>(address + chunk / kWordElements, words);
    } else {
      ptx::tcgen05_st_halves<kWords, kSplit>(address + chunk / kWordElements, words);
    }
  }
  const ptx::Float2 sum = ptx::add2(sums[0], sums[1]);
  row.sum = fmaf(row.sum, acc_scale, sum.x + sum.y);
  ptx::tcgen05_wait_st();
}

}  // namespace skimattn::sm100
