// 8-bit inputs: the factors that give them their true values back, and what lets their probabilities use the range they
// have.
#pragma once
#include <skimattn/core/platform.cuh>
#include <skimattn/params.cuh>

namespace skimattn {

// Whether inputs come with factors.
template <class Element>
inline constexpr bool kDescaled = sizeof(typename Element::Storage) == 1;

// By what power of two probabilities are larger than what the base says: 2^8 times e^0 lies just below the largest
// e4m3.
template <class Element>
inline constexpr float kGain = sizeof(typename Element::Storage) == 1 ? 8.0f : 0.0f;
// What a sum of probabilities counts.
template <class Element>
inline constexpr float kSumUnit = sizeof(typename Element::Storage) == 1 ? 0.00390625f : 1.0f;

// A factor for one request and kv head.
SKIM_DEVICE float descale_of(const float* values, int stride_batch, int stride_head, int batch, int kv_head) {
  return values == nullptr ? 1.0f : ptx::ld_global(values + batch * stride_batch + kv_head * stride_head);
}
// What one unit of Q.K^T counts.
SKIM_DEVICE float qk_descale(const Params& p, int batch, int kv_head) {
  return descale_of(p.q_descale, p.q_descale_stride_batch, p.q_descale_stride_head, batch, kv_head) *
         descale_of(p.k_descale, p.k_descale_stride_batch, p.k_descale_stride_head, batch, kv_head);
}
// What one unit of P.V counts, where P is not larger than it says.
SKIM_DEVICE float v_descale(const Params& p, int batch, int kv_head) {
  return descale_of(p.v_descale, p.v_descale_stride_batch, p.v_descale_stride_head, batch, kv_head);
}

}  // namespace skimattn
