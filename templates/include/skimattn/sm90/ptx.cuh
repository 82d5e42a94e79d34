// The instructions of SM90 alone: wgmma, and stores of matrices (see skimattn/ptx.cuh for the others).
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

// Four 8 x 8 matrices of 16-bit elements, transposed. Word m of a thread holds elements (lane / 4, 2 * (lane % 4)) of
// matrix m and its right neighbour; lane 8 m + j says where the 16 bytes go that column j of matrix m makes.
SKIM_DEVICE void stmatrix_trans(void* column, uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(smem_address(column)),
               "r"(w0), "r"(w1), "r"(w2), "r"(w3)
               : "memory");
}

}  // namespace skimattn::ptx
