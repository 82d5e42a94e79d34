// What the emulator's runtime offers to the host version of ptx.cuh. One call per instruction; the runtime decides
// when the calling fibre (one per CUDA thread) goes on. Addresses in shared memory are plain host pointers here.
#pragma once
#include <stdint.h>

namespace skim_emulator {

struct ThreadIds {
  int thread, block, grid;
};
// The running thread. Written by the scheduler at every switch.
extern ThreadIds running;

enum class Collective {
  kSync,
  kShuffle,
  kBallot,
  kBarrierArrive,
  kBarrierSync,
  kSetRegisters,
  kMatrixStore,
  kTensorAlloc,
  kTensorDealloc,
  kTensorRelinquish,
  kTensorLoad,
  kTensorStore,
  kTensorWaitLoad,
  kTensorWaitStore
};

// Blocks until all live lanes of the warp have come, then returns this lane's view of it. For shuffles `argument` is
// the source lane.
uint32_t warp_collective(Collective kind, uint32_t value, int argument);

void barrier_arrive(int id, int threads);
void barrier_sync(int id, int threads);
void cta_sync();
void set_registers(int count, bool increase);

uint8_t* dynamic_smem();
uint32_t smem_address(const void* pointer);
void shared_write(void* pointer, const void* value, int bytes);
void shared_read(void* value, const void* pointer, int bytes);
void fence_proxy_async();
// stmatrix .x4.trans: by a whole warp, `words` one of each matrix.
void matrix_store_transposed(void* column, const uint32_t (&words)[4]);

void mbarrier_init(uint64_t* barrier, uint32_t count);
void fence_mbarrier_init();
void mbarrier_arrive(uint64_t* barrier, uint32_t expect_bytes);
void mbarrier_wait_parity(uint64_t* barrier, uint32_t parity);

void tma_load(void* to, const void* map, uint64_t* barrier, const int (&at)[4]);
void tma_store(const void* map, const void* from, const int (&at)[4]);
void tma_store_commit();
void tma_store_wait(int pending, bool read_only);

enum class Element { kBf16, kFp16, kE4m3 };
// One wgmma m64nNk16, k32 of 8-bit elements; `a` null means that A comes from shared memory through `a_descriptor`.
void wgmma(float* d, int n, Element element, const uint32_t* a, uint64_t a_descriptor, uint64_t b_descriptor,
           bool accumulate, bool b_mn_major);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int pending);

// Tensor memory. Each is executed by a whole warp: `pointer` is the lane's registers (of a wait: those it makes usable)
// or, for allocations, where the address goes; `count` are columns or registers.
void tensor_collective(Collective kind, uint32_t address, int count, void* pointer, int split = 0);
void tcgen05_fence_before_thread_sync();
void tcgen05_fence_after_thread_sync();
void tcgen05_commit(uint64_t* barrier);
// One product of a thread; element_bytes is what the kind says, the types are in `instruction`.
void tcgen05_mma(uint32_t d, uint64_t a, bool a_in_tensor_memory, uint64_t b, uint32_t instruction, bool accumulate,
                 int element_bytes);

void global_access(const void* address, int bytes, bool write);

uint32_t to_bf16(float value);
uint32_t to_fp16(float value);
float from_e4m3(uint8_t bits);
uint32_t to_e4m3(float value);  // too large values become the largest one

}  // namespace skim_emulator
