// Warp-specialised decode attention for SM90: one warpgroup computes, one feeds it. Rendered kernels include this file
// only.
#pragma once
// Note: the architecture's ptx.cuh comes before everything in core/, which calls it without knowing which one it is.
#include <skimattn/sm90/ptx.cuh>
// clang-format off
#include <skimattn/core/decode_producer.cuh>
#include <skimattn/sm90/decode/consumer.cuh>
// clang-format on

namespace skimattn::sm90 {

template <class Tr>
SKIM_DEVICE void forward(const Params& p) {
  using Storage = DecodeStorage<Tr>;
  static_assert(sizeof(Storage) == Tr::kSmemBytes, "codegen/tiles/sm90_decode.py counts shared memory differently");
  Storage& smem = *reinterpret_cast<Storage*>(ptx::dynamic_smem());
  const int group = ptx::shfl(ptx::thread_index() / kGroupThreads, 0);  // shuffled: uniform for the compiler too
  if (ptx::thread_index() == 0) {
    ptx::prefetch_tensormap(&p.tma_q);
    ptx::prefetch_tensormap(&p.tma_k);
    ptx::prefetch_tensormap(&p.tma_v);
    smem.init_barriers();
  }
  // Note: nothing that lies in global memory may be touched before, not even lengths or the work counter.
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  ptx::cta_sync();
  if (group == 1) {
    ptx::setmaxnreg_dec<Tr::kProducerRegs>();
    const int warp = ptx::shfl(ptx::thread_index() % kGroupThreads / kWarpThreads, 0);
    DecodeProducer<Tr, Storage> producer(p, smem, ptx::thread_index() % kWarpThreads);
    if (warp == 0) producer.run_keys();
    if (warp == 1) producer.run_values();
    if (warp == 2) producer.run_queries();
    if (warp == 3) producer.template run_scheduler<false>();
  } else {
    ptx::setmaxnreg_inc<Tr::kConsumerRegs>();
    DecodeConsumer<Tr>(p, smem).run();
  }
}

}  // namespace skimattn::sm90
