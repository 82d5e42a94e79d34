// Warp-specialised forward attention for SM90: Tr::kConsumers warpgroups of 64 query rows each compute, one more
// warpgroup feeds them. Rendered kernels include this file only.
#pragma once
// Note: the architecture's ptx.cuh comes before everything in core/, which calls it without knowing which one it is.
#include <skimattn/sm90/ptx.cuh>
// clang-format off
#include <skimattn/core/producer.cuh>
#include <skimattn/sm90/prefill/consumer.cuh>
// clang-format on

namespace skimattn::sm90 {

template <class Tr>
SKIM_DEVICE void forward(const Params& p) {
  using Storage = SharedStorage<Tr>;
  static_assert(sizeof(Storage) == Tr::kSmemBytes, "codegen/tiles/sm90_prefill.py counts shared memory differently");
  Storage& smem = *reinterpret_cast<Storage*>(ptx::dynamic_smem());
  const int group = ptx::shfl(ptx::thread_index() / kGroupThreads, 0);  // shuffled: uniform for the compiler too
  if (ptx::thread_index() == 0) {
    prefetch_tensormaps<Storage>(p);
    smem.init_barriers();
  }
  ptx::cta_sync();
  if (group == Tr::kConsumers) {
    ptx::setmaxnreg_dec<Tr::kProducerRegs>();
    const int warp = ptx::shfl(ptx::thread_index() % kGroupThreads / kWarpThreads, 0);
    const int lane = ptx::thread_index() % kWarpThreads;
    using Loader = Producer<Tr, Storage>;
    if (warp == 0) Loader(p, smem, lane).run_keys();
    if (warp == 1 && (Loader::kValuesByWarp || lane == 0)) Loader(p, smem, lane).run_values();
    if (warp == 2 && lane == 0) Loader(p, smem, lane).run_queries();
  } else {
    ptx::setmaxnreg_inc<Tr::kConsumerRegs>();
    Consumer<Tr>(p, smem, group).run();
  }
}

}  // namespace skimattn::sm90
