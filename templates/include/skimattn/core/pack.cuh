// Floats to elements, a word of 32 bits at a time.
#pragma once
#include <skimattn/core/platform.cuh>

namespace skimattn {

template <class Element>
inline constexpr int kPerWord = 4 / static_cast<int>(sizeof(typename Element::Storage));

SKIM_DEVICE uint32_t pack_word(ElementBf16 element, const float* x) { return ptx::pack(element, x[0], x[1]); }
SKIM_DEVICE uint32_t pack_word(ElementFp16 element, const float* x) { return ptx::pack(element, x[0], x[1]); }
SKIM_DEVICE uint32_t pack_word(ElementE4m3 element, const float* x) {
  return ptx::pack(element, x[0], x[1], x[2], x[3]);
}

}  // namespace skimattn
