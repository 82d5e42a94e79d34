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

}  // namespace skimattn::ptx
