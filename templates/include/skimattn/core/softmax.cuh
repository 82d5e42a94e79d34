// Online softmax over raw (unscaled) scores in the wgmma accumulator layout: each thread owns two rows, 8 apart, and
// element i of its fragment lies in row (i >> 1) & 1. The four threads of a quad share their rows.
#pragma once
#include <skimattn/core/platform.cuh>

namespace skimattn {

constexpr int kThreadRows = 2;

SKIM_DEVICE constexpr int fragment_row(int i) { return (i >> 1) & 1; }
// Column of element i, relative to the thread's first column 2 * (lane % 4).
SKIM_DEVICE constexpr int fragment_column(int i) { return (i >> 2) * 8 + (i & 1); }

SKIM_DEVICE float quad_max(float x) {
  x = ptx::max_nan(x, ptx::shfl_xor(x, 1));
  return ptx::max_nan(x, ptx::shfl_xor(x, 2));
}
SKIM_DEVICE float quad_sum(float x) {
  x += ptx::shfl_xor(x, 1);
  return x + ptx::shfl_xor(x, 2);
}

struct RowState {
  float max[kThreadRows];  // raw score, over the kept tiles
  float sum[kThreadRows];  // of this thread's columns only, until the end
};

// The largest score of each row among this thread's columns; NaN if one is NaN.
template <int kSize>
SKIM_DEVICE void thread_maximum(const float (&s)[kSize], float (&out)[kThreadRows]) {
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) {
    // Two chains per row: the latency of one alone would show.
    float even = ptx::max_nan(s[2 * r], s[2 * r + 1]), odd = ptx::max_nan(s[2 * r + 4], s[2 * r + 5]);
#pragma unroll
    for (int i = 8; i < kSize; i += 8) {
      even = ptx::max_nan(even, ptx::max_nan(s[i + 2 * r], s[i + 2 * r + 1]));
      odd = ptx::max_nan(odd, ptx::max_nan(s[i + 2 * r + 4], s[i + 2 * r + 5]));
    }
    out[r] = ptx::max_nan(even, odd);
  }
}

// Turns scores into exp2((s - max) * scale) in place, adds them to the row sums, and returns in `alpha` what older
// sums and outputs have to be multiplied with. `thread_max` is what thread_maximum found.
template <int kSize>
SKIM_DEVICE void exponentiate(float (&s)[kSize], const float (&thread_max)[kThreadRows], RowState& rows,
                              float scale_log2, float (&alpha)[kThreadRows]) {
  float base[kThreadRows];
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) {
    const float old_max = rows.max[r];
    rows.max[r] = ptx::max_nan(old_max, quad_max(thread_max[r]));
    // A row that has seen no key keeps max = -inf; measured from 0 its exponentials come out as 0, not NaN.
    base[r] = rows.max[r] == -kInf ? 0.0f : rows.max[r] * scale_log2;
    alpha[r] = ptx::ex2(fmaf(old_max, scale_log2, -base[r]));
  }
  float sum[2 * kThreadRows] = {};
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    s[i] = ptx::ex2(fmaf(s[i], scale_log2, -base[fragment_row(i)]));
    sum[i & 3] += s[i];
  }
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) rows.sum[r] = fmaf(rows.sum[r], alpha[r], sum[2 * r] + sum[2 * r + 1]);
}

// Note: no branch around it where no maximum rose: measured, the branch costs more than the multiplications.
template <int kSize>
SKIM_DEVICE void rescale(float (&o)[kSize], const float (&alpha)[kThreadRows]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) o[i] *= alpha[fragment_row(i)];
}

// Rounds probabilities to the element type, as the A operand of P.V (the two fragments are the same layout).
template <class Element, int kSize>
SKIM_DEVICE void pack_probabilities(const float (&s)[kSize], uint32_t (&p)[kSize / 8][4]) {
#pragma unroll
  for (int i = 0; i < kSize / 2; ++i) p[i / 4][i % 4] = ptx::pack(Element{}, s[2 * i], s[2 * i + 1]);
}

}  // namespace skimattn
