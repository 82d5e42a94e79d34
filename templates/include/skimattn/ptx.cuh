// Every instruction that C++ cannot spell and that all architectures here have, one function each, named after the
// instruction. asm may stand here, in the smXX/ptx.cuh that add an architecture's own, and in the rendered operand
// lists; nowhere else. tests/emulator implements the same functions on the CPU; a kernel that names nothing else runs
// in both worlds.
#pragma once
#include <skimattn/core/platform.cuh>
#include <skimattn/params.cuh>

namespace skimattn::ptx {

// ---- threads and warps
SKIM_DEVICE int thread_index() { return threadIdx.x; }
SKIM_DEVICE int block_index() { return blockIdx.x; }
SKIM_DEVICE int grid_size() { return gridDim.x; }
SKIM_DEVICE void cta_sync() { __syncthreads(); }
SKIM_DEVICE void warp_sync() { __syncwarp(); }
SKIM_DEVICE int shfl(int value, int lane) { return __shfl_sync(~0u, value, lane); }
SKIM_DEVICE float shfl_xor(float value, int lanes) { return __shfl_xor_sync(~0u, value, lanes); }
SKIM_DEVICE int redux_max(int value) { return __reduce_max_sync(~0u, value); }
SKIM_DEVICE uint32_t ballot(bool predicate) { return __ballot_sync(~0u, predicate); }
SKIM_DEVICE int popcount(uint32_t bits) { return __popc(bits); }
SKIM_DEVICE int lowest_bit(uint32_t bits) { return __ffs(bits) - 1; }
// The same value. What follows from it is computed after this, not before a loop: addresses that are needed now and
// then would take registers all the time.
SKIM_DEVICE int late(int value) {
  asm volatile("" : "+r"(value));
  return value;
}
SKIM_DEVICE bool warp_any(bool predicate) { return __any_sync(~0u, predicate); }

template <int Registers>
SKIM_DEVICE void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}
template <int Registers>
SKIM_DEVICE void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}

// ---- programmatic dependent launch: what lies before the wait runs while the kernel before this one in the stream
// ends
SKIM_DEVICE void griddepcontrol_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
// Once all CTAs have said so or ended, the next kernel's may start; they too wait for this one's end.
SKIM_DEVICE void griddepcontrol_launch_dependents() { asm volatile("griddepcontrol.launch_dependents;"); }

// ---- named barriers: `threads` counts everyone who syncs or arrives
SKIM_DEVICE void bar_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
SKIM_DEVICE void bar_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- shared memory
SKIM_DEVICE uint8_t* dynamic_smem() {
  extern __shared__ __align__(1024) uint8_t skim_smem[];
  return skim_smem;
}
SKIM_DEVICE uint32_t smem_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
SKIM_DEVICE void st_shared(void* pointer, uint32_t value) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(smem_address(pointer)), "r"(value) : "memory");
}
SKIM_DEVICE void st_shared_zero16(void* pointer) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(smem_address(pointer)), "r"(0) : "memory");
}
// 16 bytes, at a multiple of 16.
SKIM_DEVICE void st_shared16(void* pointer, uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(smem_address(pointer)), "r"(w0), "r"(w1), "r"(w2),
               "r"(w3)
               : "memory");
}
SKIM_DEVICE void st_shared16(void* pointer, const float* x) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(smem_address(pointer)), "f"(x[0]), "f"(x[1]), "f"(x[2]),
               "f"(x[3])
               : "memory");
}
SKIM_DEVICE void ld_shared16(const void* pointer, float (&x)[4]) {
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3])
               : "r"(smem_address(pointer))
               : "memory");
}
SKIM_DEVICE void ld_shared16(const void* pointer, int (&x)[4]) {
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(smem_address(pointer))
               : "memory");
}
SKIM_DEVICE uint32_t ld_shared(const void* pointer) {
  uint32_t value;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(value) : "r"(smem_address(pointer)) : "memory");
  return value;
}
// 16 bytes, at a multiple of 16.
struct Words4 {
  uint32_t w[4];
};
SKIM_DEVICE Words4 ld_shared16(const void* pointer) {
  Words4 x;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.w[0]), "=r"(x.w[1]), "=r"(x.w[2]), "=r"(x.w[3])
               : "r"(smem_address(pointer))
               : "memory");
  return x;
}
SKIM_DEVICE void st_shared_float(float* pointer, float value) { st_shared(pointer, __float_as_uint(value)); }
SKIM_DEVICE float ld_shared_float(const float* pointer) { return __uint_as_float(ld_shared(pointer)); }
// Makes this thread's shared-memory writes visible to TMA and to matrix products.
SKIM_DEVICE void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- mbarrier
SKIM_DEVICE void mbarrier_init(uint64_t* barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_address(barrier)), "r"(count) : "memory");
}
SKIM_DEVICE void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
SKIM_DEVICE void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_address(barrier)) : "memory");
}
SKIM_DEVICE void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_address(barrier)), "r"(bytes)
               : "memory");
}
// Returns once the phase with this parity has completed.
SKIM_DEVICE void mbarrier_wait_parity(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred p;\nWAIT:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra "
      "WAIT;\nDONE:\n}\n" ::"r"(smem_address(barrier)),
      "r"(parity)
      : "memory");
}

// ---- TMA, four coordinates innermost first
SKIM_DEVICE void prefetch_tensormap(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
SKIM_DEVICE uint64_t createpolicy_evict_first() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
SKIM_DEVICE uint64_t createpolicy_evict_last() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
SKIM_DEVICE void tma_load(void* to, const TensorMap* map, uint64_t* barrier, uint64_t policy, int c0, int c1, int c2,
                          int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(smem_address(to)),
      "l"(map), "r"(smem_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "l"(policy)
      : "memory");
}
SKIM_DEVICE void tma_store(const TensorMap* map, const void* from, int c0, int c1, int c2, int c3) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
               "r"(smem_address(from)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
               : "memory");
}
SKIM_DEVICE void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until at most N committed stores of this thread still read shared memory.
template <int N>
SKIM_DEVICE void tma_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
// Until at most N committed stores of this thread are unfinished.
template <int N>
SKIM_DEVICE void tma_store_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
}

// ---- arithmetic
SKIM_DEVICE float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// The same, kept in its place among the instructions that the compiler does not reorder.
SKIM_DEVICE float ex2_now(float x) {
  float y;
  asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
SKIM_DEVICE float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// The larger of two; NaN if either is.
SKIM_DEVICE float max_nan(float x, float y) {
  float z;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}
SKIM_DEVICE uint32_t pack(ElementBf16, float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
SKIM_DEVICE uint32_t pack(ElementFp16, float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
// Four 8-bit elements, the first in the lowest byte; too large values become the largest one.
SKIM_DEVICE uint32_t pack(ElementE4m3, float x0, float x1, float x2, float x3) {
  uint32_t quad;
  asm("{\n.reg .b16 low, high;\ncvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\ncvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
      "mov.b32 %0, {low, high};\n}\n"
      : "=r"(quad)
      : "f"(x0), "f"(x1), "f"(x2), "f"(x3));
  return quad;
}

// Two 8-bit elements, the first in the lower byte of the lower half, as 16-bit ones: exact, and NaN stays NaN.
SKIM_DEVICE uint32_t widen(ElementFp16, uint32_t pair) {
  uint32_t wide;
  asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\ncvt.rn.f16x2.e4m3x2 %0, low;\n}\n" : "=r"(wide) : "r"(pair));
  return wide;
}
// The same of the upper half, which takes no shift.
SKIM_DEVICE uint32_t widen_upper(ElementFp16, uint32_t quad) {
  uint32_t wide;
  asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\ncvt.rn.f16x2.e4m3x2 %0, high;\n}\n" : "=r"(wide) : "r"(quad));
  return wide;
}
// Note: through float, since nothing converts from fp16 to bf16 or from e4m3 to bf16 at once. As many instructions as
// shifting the bits into place and multiplying by 2^120, which would make 480 of NaN.
SKIM_DEVICE uint32_t widen(ElementBf16 element, uint32_t pair) {
  float first, second;
  asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %2;\ncvt.f32.f16 %0, low;\ncvt.f32.f16 %1, high;\n}\n"
      : "=f"(first), "=f"(second)
      : "r"(widen(ElementFp16{}, pair)));
  return pack(element, first, second);
}

// Four of the eight bytes of two words, those of the first counted from 0: `selector` has a digit for each, the lowest
// first.
SKIM_DEVICE uint32_t prmt(uint32_t first, uint32_t second, uint32_t selector) {
  return __byte_perm(first, second, selector);
}

// The same number, but unknown to the compiler: what follows from it is computed here, and takes no register elsewhere.
SKIM_DEVICE int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// ---- global memory
SKIM_DEVICE uint32_t atomic_add(uint32_t* address, uint32_t value) { return atomicAdd(address, value); }
SKIM_DEVICE void atomic_add(unsigned long long* address, unsigned long long value) { atomicAdd(address, value); }
SKIM_DEVICE void st_global(float* address, float value) { *address = value; }
SKIM_DEVICE void st_global(uint32_t* address, uint32_t value) { *address = value; }
SKIM_DEVICE void st_global(uint8_t* address, uint8_t value) { *address = value; }
// Two floats at a multiple of 8 bytes, which this kernel or one before it wrote.
struct Pair {
  float x, y;
};
SKIM_DEVICE void st_global_pair(float* address, const Pair& pair) {
  asm volatile("st.global.v2.f32 [%0], {%1, %2};" ::"l"(address), "f"(pair.x), "f"(pair.y) : "memory");
}
SKIM_DEVICE Pair ld_global_pair(const float* address) {
  Pair pair;
  asm volatile("ld.global.v2.f32 {%0, %1}, [%2];" : "=f"(pair.x), "=f"(pair.y) : "l"(address) : "memory");
  return pair;
}
// Four at a multiple of 16 bytes.
SKIM_DEVICE void ld_global_quad(const float* address, float* x) {
  asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3])
               : "l"(address)
               : "memory");
}
SKIM_DEVICE void st_global_quad(float* address, const float (&x)[4]) {
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(address), "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3])
               : "memory");
}
// What this kernel only reads.
template <class T>
SKIM_DEVICE T ld_global(const T* address) {
  return __ldg(address);
}

}  // namespace skimattn::ptx
