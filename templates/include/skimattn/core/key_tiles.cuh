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

template <class Tr, int kPanels>
SKIM_DEVICE void load_key_tile(uint8_t* to, const TensorMap& map, uint64_t* full, const Keys& keys, int tile,
                               const Params& p) {
  const int key0 = tile * Tr::kTileN;
  if constexpr (Tr::kPaged) {
    // Boxes past the last key are not loaded: their pages need not exist. What then lies in shared memory is masked (K)
    // or zeroed (V) by those who read it.
    const int boxes = ceil_div(imin(Tr::kTileN, keys.len_k - key0), p.page_box_rows);
    ptx::mbarrier_arrive_expect_tx(full, boxes * p.page_box_rows * kPanelRowBytes * kPanels);
    const int32_t* pages = p.page_table + static_cast<int64_t>(keys.batch) * p.page_table_stride;
    for (int box = 0; box < boxes; ++box) {
      const int key = key0 + box * p.page_box_rows;
      const int page = ptx::ld_global(pages + key / p.page_size);
      load_panels<Tr, kPanels>(to + box * p.page_box_rows * kPanelRowBytes, map, full, key % p.page_size, keys.head,
                               page);
    }
  } else {
    // One box, which is less than a tile where no request has more keys: what lies behind them is a neighbour's.
    const bool ragged = p.cu_seqlens_k != nullptr;
    ptx::mbarrier_arrive_expect_tx(full, p.kv_box_rows * kPanelRowBytes * kPanels);
    load_panels<Tr, kPanels>(to, map, full, keys.offset + key0, keys.head, ragged ? 0 : keys.batch);
  }
}

}  // namespace skimattn
