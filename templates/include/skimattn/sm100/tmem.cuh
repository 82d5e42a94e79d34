// Tensor memory: which part of it a thread holds, and the signals that order its uses.
#pragma once
#include <skimattn/core/fragment.cuh>
#include <skimattn/core/pipeline.cuh>

namespace skimattn::sm100 {

// A lane of tensor memory: one row, all its columns.
struct LaneFragment {
  static constexpr int kRows = 1, kRowStep = 0;
  SKIM_DEVICE static constexpr int row(int) { return 0; }
  SKIM_DEVICE static constexpr int column(int i) { return i; }
};

// The lanes that a warp of a warpgroup reaches, in an address of tensor memory.
SKIM_DEVICE uint32_t tmem_lanes(int warp) { return static_cast<uint32_t>(warp % kGroupWarps * kWarpThreads) << 16; }

// One arrival per warp, once all its lanes are done.
SKIM_DEVICE void release(uint64_t* barrier) {
  ptx::warp_sync();
  if (ptx::thread_index() % kWarpThreads == 0) ptx::mbarrier_arrive(barrier);
}
// The same where the lanes have also read or written tensor memory that others will write or read.
SKIM_DEVICE void release_tmem(uint64_t* barrier) {
  ptx::tcgen05_fence_before_thread_sync();
  release(barrier);
}
// Waits for a phase after which this thread may read or write tensor memory that others have written or read.
SKIM_DEVICE void wait_tmem(uint64_t* barrier, uint32_t parity) {
  ptx::mbarrier_wait_parity(barrier, parity);
  ptx::tcgen05_fence_after_thread_sync();
}

}  // namespace skimattn::sm100
