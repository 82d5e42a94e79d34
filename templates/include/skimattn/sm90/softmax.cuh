// Online softmax over raw (unscaled) scores in the wgmma accumulator layout: each thread owns two rows, 8 apart, and
// element i of its fragment lies in row (i >> 1) & 1. The four threads of a quad share their rows.
#pragma once
#include <skimattn/core/descale.cuh>
#include <skimattn/core/pack.cuh>
#include <skimattn/sm90/fragment.cuh>

namespace skimattn::sm90 {

using Layout = WgmmaFragment;
constexpr int kThreadRows = Layout::kRows;

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

// What a kept tile does to its rows: where its exponentials are measured from, and what older sums and outputs have to
// be multiplied with.
struct RowMaxUpdate {
  float base[kThreadRows], acc_scale[kThreadRows];
};

// `thread_max` is what thread_maximum found.
SKIM_DEVICE RowMaxUpdate update_row_max(const float (&thread_max)[kThreadRows], RowState& rows, float scale_log2) {
  RowMaxUpdate update;
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) {
    const float old_max = rows.max[r];
    rows.max[r] = ptx::max_nan(old_max, quad_max(thread_max[r]));
    // A row that has seen no key keeps max = -inf; measured from 0 its exponentials come out as 0, not NaN.
    update.base[r] = rows.max[r] == -kInf ? 0.0f : rows.max[r] * scale_log2;
    update.acc_scale[r] = ptx::ex2(fmaf(old_max, scale_log2, -update.base[r]));
  }
  return update;
}

// Row 0's exponentials of the first kAhead steps of eight scores, computed before row 1's maximum and the vote are:
// the exponential unit would idle meanwhile. More of them only delay the vote.
template <int kAhead>
struct Ahead {
  float row0[4 * imax(kAhead, 1)];

  template <int kScores>
  SKIM_DEVICE void compute(const float (&s)[kScores], float base, float scale_log2) {
#pragma unroll
    for (int step = 0; step < kAhead; ++step) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (Layout::row(i) == 0) row0[slot(step, i)] = ptx::ex2_now(fmaf(s[8 * step + i], scale_log2, -base));
      }
    }
  }
  SKIM_DEVICE static constexpr bool holds(int step, int i) { return step < kAhead && Layout::row(i) == 0; }
  SKIM_DEVICE static constexpr int slot(int step, int i) { return 4 * step + 2 * (i >> 2) + (i & 1); }
};

// Words of A operands that a thread has of P: the probabilities of 16 keys in 16 bits, of 32 in 8.
template <class Element, int kScores>
inline constexpr int kOperands = kScores / (4 * kPerWord<Element>);

// Eight scores' probabilities as words of the A operand of P.V, rounded. 16-bit fragments are the same layout. An 8-bit
// word holds four of one row, in the order of their columns: where those keys lie, V has theirs (core/transposed.cuh).
template <class Element, int kCount>
SKIM_DEVICE void pack_step(const float (&e)[8], int step, uint32_t (&p)[kCount][4]) {
  if constexpr (kPerWord<Element> == 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i) p[step][i] = pack_word(Element{}, e + 2 * i);
  } else {
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      const float row[4] = {e[2 * r], e[2 * r + 1], e[2 * r + 4], e[2 * r + 5]};
      p[step / 2][step % 2 * 2 + r] = pack_word(Element{}, row);
    }
  }
}

// Where older sums enter those of a tile. At the head of the chain of additions they ask for acc_scale at once, and
// what is multiplied by it can hide behind the exponentials: dense prefill of up to 128 columns gains 3 to 4 % by that.
enum class OldSums { kFirst, kLast };

// Turns scores into probabilities, kGain powers of two larger than the base says, rounded to the element type as the A
// operand of P.V; and adds them, not rounded, to the row sums. `update_output(i)` is called for element i of the
// output. Note: all is interleaved because exponentials keep one pipe busy and the rest can hide behind it.
template <class Element, int kOut, OldSums kOldSums = OldSums::kLast, int kAhead, int kScores, class UpdateOutput>
SKIM_DEVICE void exp_and_pack_with(const float (&s)[kScores], const Ahead<kAhead>& ahead, const RowMaxUpdate& update,
                                   float scale_log2, RowState& rows, uint32_t (&p)[kOperands<Element, kScores>][4],
                                   UpdateOutput update_output) {
  constexpr int kSteps = kScores / 8, kChunk = ceil_div(kOut, kSteps);
  float sum[2 * kThreadRows] = {}, base[kThreadRows];
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) {
    base[r] = update.base[r] - kGain<Element>;
    if constexpr (kOldSums == OldSums::kFirst) sum[2 * r] = rows.sum[r] * update.acc_scale[r];
  }
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    float e[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      e[i] = Ahead<kAhead>::holds(step, i) ? ahead.row0[Ahead<kAhead>::slot(step, i)]
                                           : ptx::ex2(fmaf(s[8 * step + i], scale_log2, -base[Layout::row(i)]));
      sum[i & 3] += e[i];
    }
    pack_step<Element>(e, step, p);
#pragma unroll
    for (int i = step * kChunk; i < imin((step + 1) * kChunk, kOut); ++i) update_output(i);
  }
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) {
    const float added = sum[2 * r] + sum[2 * r + 1];
    rows.sum[r] = kOldSums == OldSums::kFirst ? added : fmaf(rows.sum[r], update.acc_scale[r], added);
  }
}

// The same, where the output is multiplied by acc_scale.
// Note: there is no branch around the multiplications where no maximum rose: measured, it costs more than they do.
template <class Element, OldSums kOldSums = OldSums::kLast, int kAhead, int kScores, int kOut>
SKIM_DEVICE void exp_and_pack(const float (&s)[kScores], const Ahead<kAhead>& ahead, const RowMaxUpdate& update,
                              float scale_log2, RowState& rows, uint32_t (&p)[kOperands<Element, kScores>][4],
                              float (&o)[kOut]) {
  exp_and_pack_with<Element, kOut, kOldSums>(s, ahead, update, scale_log2, rows, p,
                                             [&](int i) { o[i] *= update.acc_scale[Layout::row(i)]; });
}

}  // namespace skimattn::sm90
