// The instructions of SM100 alone: tcgen05 and its tensor memory, packed float arithmetic (see skimattn/ptx.cuh for the
// others). One CTA, never a pair: cta_group::1 throughout.
//
// A tensor memory address is lane << 16 | column; a column holds 32 bits. Warp w of a warpgroup reaches the lanes
// 32 * (w % 4) to 32 * (w % 4) + 31 and nothing else.
//
// tcgen05.cuh (rendered) adds, for the register counts N that it lists (shape 32x32b: register i of a thread is column
// `address + i` of the lane of the same number):
//   tcgen05_ld<N>(float* d, address)           asynchronous: d is there after tcgen05_wait_ld
//   tcgen05_wait_ld<N>(float* d)               waits for all loads of this warp; d is what the code after it may use
//   tcgen05_st<N>(address, const uint32_t* d)  asynchronous: written after tcgen05_wait_st; also for float
//   tcgen05_ld_halves<N, Split>, tcgen05_st_halves<N, Split>  the same for the first 16 of the warp's lanes (shape
//       16x32bx2): thread i holds `address + j` of lane i % 16, and threads from 16 on `address + Split + j` instead
#pragma once
#include <skimattn/ptx.cuh>
#include <skimattn/tcgen05.cuh>

namespace skimattn::ptx {

// ---- tensor memory. A whole warp calls; columns are a power of two, at least 32. The address goes to shared memory.
template <int Columns>
SKIM_DEVICE void tcgen05_alloc(uint32_t* address) {
  asm volatile("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%0], %1;" ::"r"(smem_address(address)),
               "n"(Columns)
               : "memory");
}
template <int Columns>
SKIM_DEVICE void tcgen05_dealloc(uint32_t address) {
  asm volatile("tcgen05.dealloc.cta_group::1.sync.aligned.b32 %0, %1;" ::"r"(address), "n"(Columns));
}
SKIM_DEVICE void tcgen05_relinquish_alloc_permit() {
  asm volatile("tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;");
}

// ---- ordering
SKIM_DEVICE void tcgen05_wait_st() { asm volatile("tcgen05.wait::st.sync.aligned;" ::: "memory"); }
// Before the arrival, and after the wait, by which another thread's tcgen05 instructions are ordered with this one's.
SKIM_DEVICE void tcgen05_fence_before_thread_sync() { asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory"); }
SKIM_DEVICE void tcgen05_fence_after_thread_sync() { asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory"); }
// Arrives once on the barrier when every product that this thread has issued so far is done. Implies
// fence::before_thread_sync.
SKIM_DEVICE void tcgen05_commit(uint64_t* barrier) {
  asm volatile(
      "tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];" ::"r"(smem_address(barrier))
      : "memory");
}

// ---- products, issued by one thread: d (+)= A * B, d in tensor memory (one row a lane, one float a column).
// kind::f16 for 16-bit elements (k16), kind::f8f6f4 for 8-bit ones (k32). `ss` reads A from shared memory, `ts` from
// tensor memory, K-major and packed into 32-bit columns. `instruction` is built by sm100/descriptor.cuh.
template <class Element>
SKIM_DEVICE void tcgen05_mma_ss(uint32_t d, uint64_t a, uint64_t b, uint32_t instruction, bool accumulate) {
  if constexpr (sizeof(typename Element::Storage) == 2) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %4, 0;\ntcgen05.mma.cta_group::1.kind::f16 [%0], %1, %2, %3, p;\n}\n" ::"r"(
            d),
        "l"(a), "l"(b), "r"(instruction), "r"(static_cast<int>(accumulate)));
  } else {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %4, 0;\ntcgen05.mma.cta_group::1.kind::f8f6f4 [%0], %1, %2, %3, p;\n}\n" ::
            "r"(d),
        "l"(a), "l"(b), "r"(instruction), "r"(static_cast<int>(accumulate)));
  }
}
template <class Element>
SKIM_DEVICE void tcgen05_mma_ts(uint32_t d, uint32_t a, uint64_t b, uint32_t instruction, bool accumulate) {
  if constexpr (sizeof(typename Element::Storage) == 2) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %4, 0;\ntcgen05.mma.cta_group::1.kind::f16 [%0], [%1], %2, %3, p;\n}\n" ::"r"(
            d),
        "r"(a), "l"(b), "r"(instruction), "r"(static_cast<int>(accumulate)));
  } else {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %4, 0;\ntcgen05.mma.cta_group::1.kind::f8f6f4 [%0], [%1], %2, %3, p;\n}\n" ::
            "r"(d),
        "r"(a), "l"(b), "r"(instruction), "r"(static_cast<int>(accumulate)));
  }
}

// ---- arithmetic
// The largest of three; NaN if one is.
SKIM_DEVICE float max3_nan(float x, float y, float z) {
  float largest;
  asm("max.NaN.f32 %0, %1, %2, %3;" : "=f"(largest) : "f"(x), "f"(y), "f"(z));
  return largest;
}
// Two floats at once.
struct Float2 {
  float x, y;
};
SKIM_DEVICE Float2 fma2(Float2 a, Float2 b, Float2 c) {
  Float2 d;
  asm("{\n.reg .b64 a, b, c;\nmov.b64 a, {%2, %3};\nmov.b64 b, {%4, %5};\nmov.b64 c, {%6, %7};\n"
      "fma.rn.f32x2 a, a, b, c;\nmov.b64 {%0, %1}, a;\n}\n"
      : "=f"(d.x), "=f"(d.y)
      : "f"(a.x), "f"(a.y), "f"(b.x), "f"(b.y), "f"(c.x), "f"(c.y));
  return d;
}
SKIM_DEVICE Float2 add2(Float2 a, Float2 b) {
  Float2 d;
  asm("{\n.reg .b64 a, b;\nmov.b64 a, {%2, %3};\nmov.b64 b, {%4, %5};\nadd.rn.f32x2 a, a, b;\nmov.b64 {%0, %1}, a;\n}\n"
      : "=f"(d.x), "=f"(d.y)
      : "f"(a.x), "f"(a.y), "f"(b.x), "f"(b.y));
  return d;
}

}  // namespace skimattn::ptx
