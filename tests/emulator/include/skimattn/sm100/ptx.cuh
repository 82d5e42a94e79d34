// The host version of templates/include/skimattn/sm100/ptx.cuh.
#pragma once
#include <skimattn/ptx.cuh>
#include <skimattn/tcgen05.cuh>

namespace skimattn::ptx {

// ---- tensor memory
template <int Columns>
inline void tcgen05_alloc(uint32_t* address) {
  emu::tensor_collective(emu::Collective::kTensorAlloc, 0, Columns, address);
}
template <int Columns>
inline void tcgen05_dealloc(uint32_t address) {
  emu::tensor_collective(emu::Collective::kTensorDealloc, address, Columns, nullptr);
}
inline void tcgen05_relinquish_alloc_permit() {
  emu::tensor_collective(emu::Collective::kTensorRelinquish, 0, 0, nullptr);
}

// ---- ordering
inline void tcgen05_wait_st() { emu::tensor_collective(emu::Collective::kTensorWaitStore, 0, 0, nullptr); }
inline void tcgen05_fence_before_thread_sync() { emu::tcgen05_fence_before_thread_sync(); }
inline void tcgen05_fence_after_thread_sync() { emu::tcgen05_fence_after_thread_sync(); }
inline void tcgen05_commit(uint64_t* barrier) { emu::tcgen05_commit(barrier); }

// ---- products
template <class Element>
inline void tcgen05_mma_ss(uint32_t d, uint64_t a, uint64_t b, uint32_t instruction, bool accumulate) {
  emu::tcgen05_mma(d, a, false, b, instruction, accumulate, sizeof(typename Element::Storage));
}
template <class Element>
inline void tcgen05_mma_ts(uint32_t d, uint32_t a, uint64_t b, uint32_t instruction, bool accumulate) {
  emu::tcgen05_mma(d, a, true, b, instruction, accumulate, sizeof(typename Element::Storage));
}

// ---- arithmetic
inline float max3_nan(float x, float y, float z) { return max_nan(max_nan(x, y), z); }
struct Float2 {
  float x, y;
};
inline Float2 fma2(Float2 a, Float2 b, Float2 c) { return {fmaf(a.x, b.x, c.x), fmaf(a.y, b.y, c.y)}; }
inline Float2 add2(Float2 a, Float2 b) { return {a.x + b.x, a.y + b.y}; }

}  // namespace skimattn::ptx
