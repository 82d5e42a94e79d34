// The instructions of SM90 alone: wgmma (see skimattn/ptx.cuh for the others).
//
// wgmma.cuh (rendered) adds, for N in the emitted widths:
//   Wgmma<Element, N>::ss(float (&d)[N/2], a_desc, b_desc, accumulate)  A, B in shared memory, both K-major
//   Wgmma<Element, N>::ss_mn_major(float (&d)[N/2], a_desc, b_desc)     the same with B MN-major, d += A*B
//   Wgmma<Element, N>::rs(float (&d)[N/2], a[4], b_desc)                A in registers, B MN-major, d += A*B
//   Wgmma<Element, N>::rs_k_major(float (&d)[N/2], a[4], b_desc, accumulate)           the same with B K-major
// Of 8-bit elements there are ss and rs_k_major alone.
#pragma once
#include <skimattn/ptx.cuh>
#include <skimattn/wgmma.cuh>

namespace skimattn::ptx {

SKIM_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
SKIM_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
SKIM_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

}  // namespace skimattn::ptx
