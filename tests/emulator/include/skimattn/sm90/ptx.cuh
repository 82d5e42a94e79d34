// The host version of templates/include/skimattn/sm90/ptx.cuh.
#pragma once
#include <skimattn/ptx.cuh>
#include <skimattn/wgmma.cuh>

namespace skimattn::ptx {

inline void wgmma_fence() { emu::wgmma_fence(); }
inline void wgmma_commit() { emu::wgmma_commit(); }
template <int N>
inline void wgmma_wait() {
  emu::wgmma_wait(N);
}

inline void stmatrix_trans(void* column, uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3) {
  emu::matrix_store_transposed(column, {w0, w1, w2, w3});
}

}  // namespace skimattn::ptx
