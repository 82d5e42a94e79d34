// The combine kernel for SM100. Rendered kernels include this file only.
#pragma once
// Note: the architecture's ptx.cuh comes before everything in core/, which calls it without knowing which one it is.
#include <skimattn/sm100/ptx.cuh>
// clang-format off
#include <skimattn/core/combine.cuh>
// clang-format on

namespace skimattn::sm100 {

template <class Tr>
SKIM_DEVICE void forward(const Params& p) {
  Combine<Tr>(p).run();
}

}  // namespace skimattn::sm100
