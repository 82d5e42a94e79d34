// Warp-specialised decode attention for SM100: a softmax warpgroup, one that corrects, merges and stores, and of four
// more warps one that issues the products and three that load. Rendered kernels include this file only.
#pragma once
// Note: the architecture's ptx.cuh comes before everything in core/, which calls it without knowing which one it is.
#include <skimattn/sm100/ptx.cuh>
// clang-format off
#include <skimattn/core/decode_producer.cuh>
#include <skimattn/sm100/decode/correction.cuh>
#include <skimattn/sm100/decode/mma_warp.cuh>
#include <skimattn/sm100/decode/softmax.cuh>
// clang-format on

namespace skimattn::sm100 {

template <class Tr>
SKIM_DEVICE void run_single_warp(const Params& p, DecodeStorage<Tr>& smem, int warp) {
  using R = DecodeRoles;
  using Loader = DecodeProducer<Tr, DecodeStorage<Tr>>;
  const int lane = ptx::thread_index() % kWarpThreads;
  if (warp == R::kMma && lane == 0) DecodeMma<Tr>(smem).run();
  if (warp == R::kKeys) Loader(p, smem, lane).run_keys();
  if (warp == R::kValues) Loader(p, smem, lane).run_values();
  if (warp == R::kQueries) Loader(p, smem, lane).template run_scheduler<true>();
}

template <class Tr>
SKIM_DEVICE void forward(const Params& p) {
  using Storage = DecodeStorage<Tr>;
  using R = DecodeRoles;
  static_assert(sizeof(Storage) == Tr::kSmemBytes, "codegen/tiles/sm100_decode.py counts shared memory differently");
  Storage& smem = *reinterpret_cast<Storage*>(ptx::dynamic_smem());
  // Shuffled: uniform for the compiler too.
  const int warpgroup = ptx::shfl(ptx::thread_index() / kGroupThreads, 0);
  const int warp = ptx::shfl(ptx::thread_index() % kGroupThreads / kWarpThreads, 0);
  if (ptx::thread_index() == 0) {
    ptx::prefetch_tensormap(&p.tma_q);
    ptx::prefetch_tensormap(&p.tma_k);
    ptx::prefetch_tensormap(&p.tma_v);
    smem.init_barriers();
  }
  if (warpgroup == R::kSingles && warp == R::kMma) {
    ptx::tcgen05_alloc<Tr::kTmemColumns>(&smem.tmem_address);
    ptx::tcgen05_relinquish_alloc_permit();
  }
  // Note: nothing that lies in global memory may be touched before, not even lengths or the work counter.
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  ptx::tcgen05_fence_before_thread_sync();
  ptx::cta_sync();
  ptx::tcgen05_fence_after_thread_sync();
  if (warpgroup == R::kSingles) {
    ptx::setmaxnreg_dec<Tr::kOtherRegs>();
    run_single_warp<Tr>(p, smem, warp);
  } else if (warpgroup == R::kCorrection) {
    ptx::setmaxnreg_inc<Tr::kCorrectionRegs>();
    DecodeCorrection<Tr>(p, smem).run();
  } else {
    ptx::setmaxnreg_dec<Tr::kSoftmaxRegs>();
    DecodeSoftmax<Tr>(p, smem).run();
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
