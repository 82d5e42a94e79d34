// From a row's sum of exponentials to what is stored: the factor of its output, and its LSE.
#pragma once
#include <skimattn/core/fragment.cuh>
#include <skimattn/params.cuh>

namespace skimattn {

// 1 / denominator, and 0 for a row that saw no key. `base` (a raw score, worth `scale_log2` a unit) is what the
// exponentials of `sum` were measured from.
SKIM_DEVICE float inverse_of(float sum, float base, float scale_log2, int head, const Params& p) {
  if (sum == 0.0f) return 0.0f;
  float denominator = sum;
  if (p.sinks != nullptr) {
    denominator += ptx::ex2(fmaf(ptx::ld_global(p.sinks + head), kLog2e, -base * scale_log2));
  }
  return 1.0f / denominator;
}

// Note: selected, not multiplied: 0 x NaN would let a value through that the row never saw.
SKIM_DEVICE float normalised(float o, float inverse) { return inverse == 0.0f ? 0.0f : o * inverse; }

// Two columns of a row as they are stored; the output type is 16-bit whatever the inputs are.
template <class Out>
SKIM_DEVICE uint32_t pack_output(float low, float high, float inverse) {
  return ptx::pack(Out{}, normalised(low, inverse), normalised(high, inverse));
}

// Where row r of the fragment begins in the output, whose elements have 16 bits.
template <class Place>
SKIM_DEVICE uint16_t* output_row(const Place& at, int r, const Params& p) {
  const int64_t outer = p.cu_seqlens_q == nullptr ? at.batch * p.out_stride_batch : 0;
  const int64_t row = at.q_offset + at.row_of(r);
  return static_cast<uint16_t*>(p.out) + outer + row * p.out_stride_row + at.head_of(r) * p.out_stride_head;
}

template <class Place>
SKIM_DEVICE void store_lse(float sum, float base, float scale_log2, int r, const Place& at, const Params& p) {
  const int64_t outer = p.cu_seqlens_q == nullptr ? at.batch * p.lse_stride_batch : 0;
  const int64_t row = at.q_offset + at.row_of(r);
  const float lse = sum == 0.0f ? -kInf : fmaf(base, scale_log2 * kLn2, logf(sum));
  ptx::st_global(p.lse + outer + row * p.lse_stride_row + at.head_of(r) * p.lse_stride_head, lse);
}

}  // namespace skimattn
