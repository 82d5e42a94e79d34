// What the warps that feed a decode CTA have in common: the items of work that one publishes and the others receive,
// and Q.
#pragma once
#include <skimattn/core/decode_work.cuh>

namespace skimattn {

// `Storage` is the kernel's shared memory.
template <class Tr, class Storage>
class DecodeFeeder {
 public:
  SKIM_DEVICE DecodeFeeder(const Params& p, Storage& smem, int lane) : p_(p), smem_(smem), lane_(lane) {}

  SKIM_DEVICE void run_queries() {
    for (DecodeItem item = receive(); item.base.valid; item = receive()) {
      load_next_q(item);
      release_item();
    }
  }

 protected:
  SKIM_DEVICE DecodeItem receive() {
    ptx::mbarrier_wait_parity(&smem_.work_full[work_.slot], work_.phase);
    return read_decode_item(smem_, work_.slot);
  }
  SKIM_DEVICE void release_item() {
    ptx::warp_sync();
    if (lane_ == 0) ptx::mbarrier_arrive(&smem_.work_empty[work_.slot]);
    work_.advance();
  }

  SKIM_DEVICE void publish(const DecodeItem& item) {
    ptx::mbarrier_wait_parity(&smem_.work_empty[work_.slot], work_.phase ^ 1);
    ptx::warp_sync();  // an item without keys may be given back before a lane that lags has seen this phase
    if (lane_ == 0) {
      write_decode_item(smem_, work_.slot, item);
      ptx::mbarrier_arrive(&smem_.work_full[work_.slot]);
    }
    work_.advance();
  }

  SKIM_DEVICE void load_next_q(const DecodeItem& item) {
    ptx::mbarrier_wait_parity(&smem_.q_empty, q_.phase ^ 1);
    load_q(item);
    q_.advance();
  }

  // Q's rows in packed order, a box of heads x rows after the other.
  SKIM_DEVICE void load_q(const DecodeItem& item) {
    const uint64_t policy = ptx::createpolicy_evict_first();
    const int qheads_per_kv = p_.qheads_per_kv, box_rows = p_.q_box_heads * p_.q_box_rows;
    const int rows = imin(Tr::kGroupRows, item.packed_rows(p_) - item.base.row0), boxes = ceil_div(rows, box_rows);
    const int outer = p_.cu_seqlens_q == nullptr ? item.base.batch : 0;
    if (lane_ == 0) {
      ptx::mbarrier_arrive_expect_tx(&smem_.q_full, boxes * box_rows * kPanelRowBytes * Storage::kPanelsQ);
    }
    ptx::warp_sync();
    for (int box = lane_; box < boxes; box += kWarpThreads) {
      const int packed = item.base.row0 + box * box_rows;
      const int head = item.base.head * qheads_per_kv + packed % qheads_per_kv;
      const int row = item.base.q_offset + packed / qheads_per_kv;
#pragma unroll
      for (int panel = 0; panel < Storage::kPanelsQ; ++panel) {
        ptx::tma_load(smem_.q() + panel * Storage::kQPanelBytes + box * box_rows * kPanelRowBytes, &p_.tma_q,
                      &smem_.q_full, policy, panel * kPanelColumns<typename Tr::ElementQ>, head, row, outer);
      }
    }
  }

  const Params& p_;
  Storage& smem_;
  const int lane_;
  PipelineState<1> q_;

 private:
  PipelineState<kWorkSlots> work_;
};

}  // namespace skimattn
