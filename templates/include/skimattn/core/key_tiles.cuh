// Copies of tiles of keys or values, wherever they lie: in a batch, a ragged batch, or pages.
#pragma once
#include <skimattn/core/platform.cuh>
#include <skimattn/params.cuh>

namespace skimattn {

// Where a request's keys and values of one kv head are.
struct Keys {
  int head, batch, offset, len_k;
};

// From `row` of a request or page on, in panels of 128 bytes.
template <class Tr, int kPanels>
SKIM_DEVICE void load_panels(uint8_t* to, const TensorMap& map, uint64_t* full, int row, int kv_head, int outer) {
  const uint64_t policy = ptx::createpolicy_evict_last();  // other query tiles read it again
#pragma unroll
  for (int panel = 0; panel < kPanels; ++panel) {
    ptx::tma_load(to + panel * Tr::kTileN * kPanelRowBytes, &map, full, policy,
                  panel * kPanelColumns<typename Tr::Element>, row, kv_head, outer);
  }
}

// Boxes of a tile that lies in pages. Those past the last key are not loaded: their pages need not exist. What then
// lies in shared memory is masked (K) or zeroed (V) by those who read it.
template <class Tr>
class PagedTile {
 public:
  // By a whole warp, each lane of which has the page of its first box read before the slot is waited for.
  SKIM_DEVICE PagedTile(const Keys& keys, int tile, int lane, const Params& p)
      : pages_(p.page_table + static_cast<int64_t>(keys.batch) * p.page_table_stride),
        key0_(tile * Tr::kTileN),
        boxes_(ceil_div(imin(Tr::kTileN, keys.len_k - key0_), p.page_box_rows)),
        page_(lane < boxes_ ? page_of(lane, p) : 0) {}

  template <int kPanels>
  SKIM_DEVICE void load(uint8_t* to, const TensorMap& map, uint64_t* full, int kv_head, int lane, const Params& p) {
    if (lane == 0) ptx::mbarrier_arrive_expect_tx(full, boxes_ * p.page_box_rows * kPanelRowBytes * kPanels);
    ptx::warp_sync();
    for (int box = lane; box < boxes_; box += kWarpThreads) {
      if (box != lane) page_ = page_of(box, p);
      load_panels<Tr, kPanels>(to + box * p.page_box_rows * kPanelRowBytes, map, full, key_of(box, p) % p.page_size,
                               kv_head, page_);
    }
    ptx::warp_sync();
  }

 private:
  SKIM_DEVICE int key_of(int box, const Params& p) const { return key0_ + box * p.page_box_rows; }
  SKIM_DEVICE int page_of(int box, const Params& p) const {
    return ptx::ld_global(pages_ + key_of(box, p) / p.page_size);
  }

  const int32_t* pages_;
  int key0_, boxes_, page_;
};

// One box, which is less than a tile where no request has more keys: what lies behind them is a neighbour's.
template <class Tr, int kPanels>
SKIM_DEVICE void load_key_tile(uint8_t* to, const TensorMap& map, uint64_t* full, const Keys& keys, int tile,
                               const Params& p) {
  const bool ragged = p.cu_seqlens_k != nullptr;
  ptx::mbarrier_arrive_expect_tx(full, p.kv_box_rows * kPanelRowBytes * kPanels);
  load_panels<Tr, kPanels>(to, map, full, keys.offset + tile * Tr::kTileN, keys.head, ragged ? 0 : keys.batch);
}

}  // namespace skimattn
