// What happens to raw scores before the softmax: softcap, alibi, mask.
#pragma once
#include <skimattn/core/fragment.cuh>
#include <skimattn/core/mask.cuh>

namespace skimattn {

SKIM_DEVICE float alibi_slope(int batch, int head, const Params& p) {
  return ptx::ld_global(p.alibi_slopes + batch * p.alibi_stride_batch + head);
}

// After this, one raw unit is worth `scale_log2`: softmax_scale without softcap, softcap with it.
// `score_scale` is what a product counts inside the softcap.
template <class Tr, class Place, int kSize>
SKIM_DEVICE void apply_score_mod(float (&s)[kSize], int key0, const Place& at, float score_scale) {
  using Layout = typename Place::Layout;
  if constexpr (Tr::kSoftcap) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) s[i] = ptx::tanh_approx(s[i] * score_scale);
  }
  if constexpr (Tr::kAlibi) {
    // Note: exact up to 2^24 keys; counted in integers it costs a conversion for each score.
#pragma unroll
    for (int r = 0; r < Layout::kRows; ++r) {
      const float first = static_cast<float>(at.diagonal(r) - key0 - at.column);
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        if (Layout::row(i) != r) continue;
        s[i] = fmaf(-at.alibi_of(r), fabsf(first - static_cast<float>(Layout::column(i))), s[i]);
      }
    }
  }
}

// Word `index` of the custom mask's row that row r of the fragment has: 32 columns. Those before the first one are
// seen, those past the last one and rows past the end are hidden; none of these is read.
template <class Place>
SKIM_DEVICE uint32_t load_mask_word(int r, int index, const Place& at, const Params& p) {
  if (index < 0) return ~0u;
  const int columns = p.custom_keys > 0 ? p.custom_keys : at.len_k;
  if (!at.valid(r) || index >= ceil_div(columns, 32)) return 0;
  // Note: a ragged batch's mask has its rows end to end, a batched one a plane per request (stride 0: shared).
  const int64_t row = at.q_offset + at.row_of(r);
  const uint8_t* bits = p.custom_mask + at.batch * p.custom_stride_batch + at.head_of(r) * p.custom_stride_head +
                        row * p.custom_stride_row;
  return ptx::ld_global(reinterpret_cast<const uint32_t*>(bits) + index);
}

// Hides from row r of the fragment what it does not see; `span` is what the mask's geometry lets it see.
template <class Tr, class Place, int kSize>
SKIM_DEVICE void mask_row(float (&s)[kSize], int r, const Span& span, int key0, const Place& at, const Params& p) {
  using Layout = typename Place::Layout;
  constexpr bool kCustom = Tr::kMask == Mask::kCustom;
  constexpr bool kHasLow = kHidesFirstKeys<Tr::kMask> && !kCustom;
  const int lo = span.lo - key0 - at.column, hi = span.hi - key0 - at.column;
  // Bits are taken 32 at a time, in the rising order of elements' columns. They lie in two words unless column 0 stands
  // for a multiple of 32 keys: `next` is the second one, and the first one of those after them.
  [[maybe_unused]] uint32_t word = 0, next = 0;
  [[maybe_unused]] int mask_column = 0;
  if constexpr (kCustom) {
    mask_column = key0 - first_masked_key(at.len_k, p);
    next = load_mask_word(r, mask_column >> 5, at, p);
  }
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    if (Layout::row(i) != r) continue;
    const int column = Layout::column(i);
    if (kCustom && column % 32 == 0) {
      const uint32_t first = next;
      next = load_mask_word(r, (mask_column >> 5) + column / 32 + 1, at, p);
      word = static_cast<uint32_t>((static_cast<uint64_t>(next) << 32 | first) >> (mask_column & 31)) >> at.column;
    }
    bool seen = column < hi;
    if constexpr (kHasLow) seen = seen && column >= lo;
    if constexpr (kCustom) seen = seen && (word >> (column % 32) & 1) != 0;
    s[i] = seen ? s[i] : -kInf;
  }
}

template <class Tr, class Place, int kSize>
SKIM_DEVICE void mask_scores(float (&s)[kSize], int key0, const Place& at, const Params& p) {
#pragma unroll
  for (int r = 0; r < Place::Layout::kRows; ++r) {
    mask_row<Tr>(s, r, visible_keys<Tr::kMask>(at.diagonal(r), at.len_k, p), key0, at, p);
  }
}

}  // namespace skimattn
