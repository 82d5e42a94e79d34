// Warp-specialised forward attention for SM100: Tr::kConsumers groups of 128 query rows, each with a softmax warpgroup
// and its own part of tensor memory; one warpgroup corrects their outputs and stores them; of four more warps one
// issues the products and three load. Rendered kernels include this file only.
#pragma once
// Note: the architecture's ptx.cuh comes before everything in core/, which calls it without knowing which one it is.
#include <skimattn/sm100/ptx.cuh>
// clang-format off
#include <skimattn/core/producer.cuh>
#include <skimattn/sm100/prefill/correction.cuh>
#include <skimattn/sm100/prefill/mma_warp.cuh>
#include <skimattn/sm100/prefill/softmax.cuh>
// clang-format on

namespace skimattn::sm100 {

template <class Tr>
SKIM_DEVICE void run_single_warp(const Params& p, SharedStorage<Tr>& smem, int warp) {
  using R = Roles<Tr>;
  using Loader = Producer<Tr, SharedStorage<Tr>>;
  const int lane = ptx::thread_index() % kWarpThreads;
  if (warp == R::kKeys) Loader(p, smem, lane).run_keys();
  if (warp == R::kMma && lane == 0) MmaWarp<Tr>(p, smem).run();
  if (warp == R::kValues && (Loader::kValuesByWarp || lane == 0)) Loader(p, smem, lane).run_values();
  if (warp == R::kQueries && lane == 0) Loader(p, smem, lane).run_queries();
}

template <class Tr>
SKIM_DEVICE void forward(const Params& p) {
  using Storage = SharedStorage<Tr>;
  using R = Roles<Tr>;
  static_assert(sizeof(Storage) == Tr::kSmemBytes, "codegen/tiles/sm100_prefill.py counts shared memory differently");
  Storage& smem = *reinterpret_cast<Storage*>(ptx::dynamic_smem());
  // Shuffled: uniform for the compiler too.
  const int warpgroup = ptx::shfl(ptx::thread_index() / kGroupThreads, 0);
  const int warp = ptx::shfl(ptx::thread_index() % kGroupThreads / kWarpThreads, 0);
  if (ptx::thread_index() == 0) {
    prefetch_tensormaps<Storage>(p);
    smem.init_barriers();
  }
  if (warpgroup == R::kSingles && warp == R::kMma) {
    ptx::tcgen05_alloc<Tr::kTmemColumns>(&smem.tmem_address);
    ptx::tcgen05_relinquish_alloc_permit();
  }
  ptx::tcgen05_fence_before_thread_sync();
  ptx::cta_sync();
  ptx::tcgen05_fence_after_thread_sync();
  if (warpgroup == R::kSingles) {
    ptx::setmaxnreg_dec<Tr::kOtherRegs>();
    run_single_warp<Tr>(p, smem, warp);
  } else if (warpgroup == R::kCorrection) {
    ptx::setmaxnreg_dec<Tr::kCorrectionRegs>();
    Correction<Tr>(p, smem).run();
  } else {
    ptx::setmaxnreg_inc<Tr::kSoftmaxRegs>();
    Softmax<Tr>(p, smem, warpgroup).run();
  }
  // Tensor memory outlives everyone who uses it.
  ptx::warp_sync();
  ptx::tcgen05_fence_before_thread_sync();
  ptx::cta_sync();
  if (warpgroup == R::kSingles && warp == R::kMma) {
    ptx::tcgen05_fence_after_thread_sync();
    ptx::tcgen05_dealloc<Tr::kTmemColumns>(ptx::ld_shared(&smem.tmem_address));
  }
}

}  // namespace skimattn::sm100
