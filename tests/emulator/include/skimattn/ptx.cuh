// The host version of templates/include/skimattn/ptx.cuh: the same functions, answered by the emulator.
#pragma once
#include <stdlib.h>

#include <skimattn_host/machine.h>
#include <skimattn/core/platform.cuh>
#include <skimattn/params.cuh>

namespace skimattn::ptx {

namespace emu = skim_emulator;

// ---- threads and warps
inline int thread_index() { return emu::running.thread; }
inline int block_index() { return emu::running.block; }
inline int grid_size() { return emu::running.grid; }
inline int lane_index() { return emu::running.thread % 32; }
inline void cta_sync() { emu::cta_sync(); }
inline void warp_sync() { emu::warp_collective(emu::Collective::kSync, 0, 0); }
inline uint32_t shuffle_bits(uint32_t value, int lane) {
  return emu::warp_collective(emu::Collective::kShuffle, value, lane);
}
inline int shfl(int value, int lane) { return static_cast<int>(shuffle_bits(value, lane & 31)); }
inline int redux_max(int value) {
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const int other = static_cast<int>(shuffle_bits(value, lane_index() ^ lanes));
    value = value < other ? other : value;
  }
  return value;
}
inline float shfl_xor(float value, int lanes) {
  return __builtin_bit_cast(float, shuffle_bits(__builtin_bit_cast(uint32_t, value), lane_index() ^ lanes));
}
inline uint32_t ballot(bool predicate) { return emu::warp_collective(emu::Collective::kBallot, predicate, 0); }
inline bool warp_any(bool predicate) { return ballot(predicate) != 0; }
inline int popcount(uint32_t bits) { return __builtin_popcount(bits); }
inline int late(int value) { return value; }
inline int lowest_bit(uint32_t bits) { return __builtin_ffs(static_cast<int>(bits)) - 1; }

template <int Registers>
inline void setmaxnreg_inc() {
  emu::set_registers(Registers, true);
}
template <int Registers>
inline void setmaxnreg_dec() {
  emu::set_registers(Registers, false);
}

// ---- programmatic dependent launch: the emulator runs one kernel after the other
inline void griddepcontrol_wait() {}
inline void griddepcontrol_launch_dependents() {}

// ---- named barriers
inline void bar_sync(int id, int threads) { emu::barrier_sync(id, threads); }
inline void bar_arrive(int id, int threads) { emu::barrier_arrive(id, threads); }

// ---- shared memory
inline uint8_t* dynamic_smem() { return emu::dynamic_smem(); }
inline uint32_t smem_address(const void* pointer) { return emu::smem_address(pointer); }
inline void st_shared(void* pointer, uint32_t value) { emu::shared_write(pointer, &value, 4); }
inline void st_shared_zero16(void* pointer) {
  const uint32_t zero[4] = {};
  emu::shared_write(pointer, zero, 16);
}
inline void st_shared16(void* pointer, uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3) {
  const uint32_t words[4] = {w0, w1, w2, w3};
  emu::shared_write(pointer, words, 16);
}
inline void st_shared16(void* pointer, const float* x) { emu::shared_write(pointer, x, 16); }
inline void ld_shared16(const void* pointer, float (&x)[4]) { emu::shared_read(x, pointer, 16); }
inline void ld_shared16(const void* pointer, int (&x)[4]) { emu::shared_read(x, pointer, 16); }
inline uint32_t ld_shared(const void* pointer) {
  uint32_t value;
  emu::shared_read(&value, pointer, 4);
  return value;
}
struct Words4 {
  uint32_t w[4];
};
inline Words4 ld_shared16(const void* pointer) {
  Words4 x;
  emu::shared_read(x.w, pointer, 16);
  return x;
}
inline void st_shared_float(float* pointer, float value) { emu::shared_write(pointer, &value, 4); }
inline float ld_shared_float(const float* pointer) { return __builtin_bit_cast(float, ld_shared(pointer)); }
inline void fence_proxy_async() { emu::fence_proxy_async(); }

// ---- mbarrier
inline void mbarrier_init(uint64_t* barrier, uint32_t count) { emu::mbarrier_init(barrier, count); }
inline void fence_mbarrier_init() { emu::fence_mbarrier_init(); }
inline void mbarrier_arrive(uint64_t* barrier) { emu::mbarrier_arrive(barrier, 0); }
inline void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes) { emu::mbarrier_arrive(barrier, bytes); }
inline void mbarrier_wait_parity(uint64_t* barrier, uint32_t parity) { emu::mbarrier_wait_parity(barrier, parity); }

// ---- TMA
inline void prefetch_tensormap(const TensorMap*) {}
inline uint64_t createpolicy_evict_first() { return 0; }
inline uint64_t createpolicy_evict_last() { return 0; }
inline void tma_load(void* to, const TensorMap* map, uint64_t* barrier, uint64_t, int c0, int c1, int c2, int c3) {
  emu::tma_load(to, map, barrier, {c0, c1, c2, c3});
}
inline void tma_store(const TensorMap* map, const void* from, int c0, int c1, int c2, int c3) {
  emu::tma_store(map, from, {c0, c1, c2, c3});
}
inline void tma_store_commit() { emu::tma_store_commit(); }
template <int N>
inline void tma_store_wait_read() {
  emu::tma_store_wait(N, true);
}
template <int N>
inline void tma_store_wait() {
  emu::tma_store_wait(N, false);
}

// ---- arithmetic; results below the smallest normal number are flushed, as .ftz does
inline float ex2(float x) {
  const float y = exp2f(x);
  return y < 1.17549435e-38f ? 0.0f : y;
}
inline float ex2_now(float x) { return ex2(x); }
inline float tanh_approx(float x) { return tanhf(x); }
inline float max_nan(float x, float y) { return x != x ? x : y != y ? y : (x > y ? x : y); }
inline uint32_t pack(ElementBf16, float low, float high) { return emu::to_bf16(low) | emu::to_bf16(high) << 16; }
inline uint32_t pack(ElementFp16, float low, float high) { return emu::to_fp16(low) | emu::to_fp16(high) << 16; }
inline uint32_t pack(ElementE4m3, float x0, float x1, float x2, float x3) {
  return emu::to_e4m3(x0) | emu::to_e4m3(x1) << 8 | emu::to_e4m3(x2) << 16 | emu::to_e4m3(x3) << 24;
}
inline uint32_t widen(ElementBf16, uint32_t pair) {
  return emu::to_bf16(emu::from_e4m3(pair & 0xff)) | emu::to_bf16(emu::from_e4m3(pair >> 8 & 0xff)) << 16;
}
inline uint32_t widen(ElementFp16, uint32_t pair) {
  return emu::to_fp16(emu::from_e4m3(pair & 0xff)) | emu::to_fp16(emu::from_e4m3(pair >> 8 & 0xff)) << 16;
}
inline uint32_t widen_upper(ElementFp16 element, uint32_t quad) { return widen(element, quad >> 16); }

inline uint32_t prmt(uint32_t first, uint32_t second, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(second) << 32 | first;
  uint32_t chosen = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t digit = selector >> 4 * i & 0xf;
    if (digit > 7) abort();  // sign replication is not modelled
    chosen |= static_cast<uint32_t>(bytes >> 8 * digit & 0xff) << 8 * i;
  }
  return chosen;
}

inline int opaque(int x) { return x; }

// ---- global memory; fibres switch only inside emulator calls, so a plain read-modify-write is atomic
template <class T>
inline T host_atomic_add(T* address, T value) {
  emu::global_access(address, sizeof(T), true);
  const T old = *address;
  *address = old + value;
  return old;
}
inline uint32_t atomic_add(uint32_t* address, uint32_t value) { return host_atomic_add(address, value); }
inline void atomic_add(unsigned long long* address, unsigned long long value) { host_atomic_add(address, value); }
template <class T>
inline void host_store(void* address, T value) {
  emu::global_access(address, sizeof(T), true);
  memcpy(address, &value, sizeof(T));
}
inline void st_global(void* address, uint32_t value) { host_store(address, value); }
inline void st_global(float* address, float value) { host_store(address, value); }
inline void st_global(uint32_t* address, uint32_t value) { host_store(address, value); }
inline void st_global(uint8_t* address, uint8_t value) { host_store(address, value); }
struct Pair {
  float x, y;
};
inline void st_global_pair(float* address, const Pair& pair) { host_store(address, pair); }
inline Pair ld_global_pair(const float* address) {
  emu::global_access(address, sizeof(Pair), false);
  return {address[0], address[1]};
}
inline void st_global_quad(float* address, const float (&x)[4]) {
  emu::global_access(address, 16, true);
  memcpy(address, x, 16);
}
inline void ld_global_quad(const float* address, float* x) {
  emu::global_access(address, 16, false);
  memcpy(x, address, 16);
}
template <class T>
inline T ld_global(const T* address) {
  emu::global_access(address, sizeof(T), false);
  return *address;
}

}  // namespace skimattn::ptx
