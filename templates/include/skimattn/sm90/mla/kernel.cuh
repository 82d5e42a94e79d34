// Warp-specialised MLA decode attention for SM90: two warpgroups compute, one feeds them. Rendered kernels include this
// file only.
#pragma once
// Note: the architecture's ptx.cuh comes before everything in core/, which calls it without knowing which one it is.
#include <skimattn/sm90/ptx.cuh>
// clang-format off
#include <skimattn/sm90/mla/follower.cuh>
#include <skimattn/sm90/mla/leader.cuh>
#include <skimattn/sm90/mla/producer.cuh>
// clang-format on

namespace skimattn::sm90 {

template <class Tr>
SKIM_DEVICE void forward(const Params& p) {
  using Storage = MlaStorage<Tr>;
  static_assert(sizeof(Storage) == Tr::kSmemBytes, "codegen/tiles/sm90_mla.py counts shared memory differently");
  Storage& smem = *reinterpret_cast<Storage*>(ptx::dynamic_smem());
  const int group = ptx::shfl(ptx::thread_index() / kGroupThreads, 0);  // shuffled: uniform for the compiler too
  if (ptx::thread_index() == 0) {
    ptx::prefetch_tensormap(&p.tma_q);
    ptx::prefetch_tensormap(&p.tma_k);
    smem.init_barriers();
  }
  // Note: nothing that lies in global memory may be touched before, not even lengths or the work counter.
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  ptx::cta_sync();
  if (group == 2) {
    ptx::setmaxnreg_dec<Tr::kProducerRegs>();
    const int warp = ptx::shfl(ptx::thread_index() % kGroupThreads / kWarpThreads, 0);
    MlaProducer<Tr> producer(p, smem, ptx::thread_index() % kWarpThreads);
    if (warp == 0) producer.run_keys();
    if (warp == 1) producer.run_queries();
    if constexpr (Tr::kSkip == Skip::kStat) {
      if (warp == 2) producer.run_counts();
    }
  } else if (group == 1) {
    ptx::setmaxnreg_inc<Tr::kFollowerRegs>();
    MlaFollower<Tr>(p, smem).run();
  } else {
    ptx::setmaxnreg_inc<Tr::kLeaderRegs>();
    MlaLeader<Tr>(p, smem).run();
  }
}

}  // namespace skimattn::sm90
