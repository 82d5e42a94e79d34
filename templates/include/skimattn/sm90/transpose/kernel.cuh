// Writes V of 8 bits, transposed, to the workspace (core/transposed.cuh): a tile of one kv head's keys at a time.
// Rendered kernels include this file only.
//
// CTAs take tiles in turn, one after the other; several CTAs of an SM hide each other's copies.
#pragma once
// Note: the architecture's ptx.cuh comes before everything in core/, which calls it without knowing which one it is.
#include <skimattn/sm90/ptx.cuh>
// clang-format off
#include <skimattn/core/pipeline.cuh>
#include <skimattn/core/transposed.cuh>
#include <skimattn/sm90/descriptor.cuh>
#include <skimattn/sm90/transpose/storage.cuh>
// clang-format on

namespace skimattn::sm90 {

// The first key that some row of a request may see. The mask is a value here.
template <int kMask = 0>
SKIM_DEVICE int first_seen_key(int len_q, int len_k, const Params& p) {
  if constexpr (kMask + 1 < kMasks) {
    if (p.mask != kMask) return first_seen_key<kMask + 1>(len_q, len_k, p);
  }
  return visible_keys<static_cast<Mask>(kMask)>(len_k - len_q, len_k, p).lo;
}

template <class Tr>
class Transpose {
 public:
  using Storage = TransposeStorage<Tr>;
  // A warp takes 128 columns, or as many as there are, of a group of keys.
  static constexpr int kGroups = Tr::kTileN / kTransposedGroup;
  static_assert(Storage::kPanels * kGroups * kWarpThreads == Tr::kThreads);

  SKIM_DEVICE Transpose(const Params& p, Storage& smem)
      : p_(p),
        smem_(smem),
        warp_(ptx::shfl(ptx::thread_index() / kWarpThreads, 0)),
        lane_(ptx::thread_index() % kWarpThreads) {}

  SKIM_DEVICE void run() {
    const int all = tiles() * p_.heads_kv;
    for (int i = ptx::block_index(); i < all; i += ptx::grid_size()) {
      const Item item = find(i / p_.heads_kv, i % p_.heads_kv);
      if (item.tile >= 0) transpose(item);
    }
    if (ptx::thread_index() == 0) ptx::tma_store_wait<0>();  // shared memory must outlive the stores that read it
  }

 private:
  // A tile of keys, those of it [seen.lo, seen.hi) that rows see, and where it goes. Tile -1: none.
  struct Item {
    int tile;
    Keys keys;
    Span seen;
    TransposedPlace place;
  };

  SKIM_DEVICE bool ragged() const { return p_.cu_seqlens_k != nullptr; }
  SKIM_DEVICE int place_tiles() const { return ceil_div(p_.len_k, Tr::kTileN); }  // of a place of its own
  // Tiles of the workspace for each kv head, used or not.
  SKIM_DEVICE int tiles() const {
    if (ragged()) return first_tile(p_.batch);
    return place_tiles() * (end_request<true>(p_) - p_.first_request);
  }
  // Of a ragged request.
  SKIM_DEVICE int first_tile(int batch) const {
    return transposed_place<Tr::kTileN>(p_, batch, ptx::ld_global(p_.cu_seqlens_k + batch)).tile0;
  }

  // Whose the tile `at` of the workspace is, and what belongs there.
  SKIM_DEVICE Item find(int at, int kv_head) const {
    const int batch = ragged() ? find_ragged(at) : p_.first_request + at / place_tiles();
    const int tile = ragged() ? at - first_tile(batch) : at % place_tiles();
    const WorkItem item = make_item(p_, batch, kv_head, 0);
    const Keys keys = {kv_head, batch, item.k_offset, item.len_k};
    const int key0 = tile * Tr::kTileN, first = first_seen_key(item.len_q, item.len_k, p_);
    const Span seen = {first - key0, item.len_k - key0};
    const bool computed = item.len_q > 0 && !(p_.decode_always_rows > 0 && decodes(p_, item.len_q, item.len_k));
    const bool needed = computed && seen.lo < Tr::kTileN && seen.hi > 0;
    return {needed ? tile : -1, keys, seen, transposed_place<Tr::kTileN>(p_, batch, item.k_offset)};
  }

  // The last request that starts at tile `at` or before it.
  SKIM_DEVICE int find_ragged(int at) const {
    int lo = 0, hi = p_.batch;
    while (hi - lo > 1) {
      const int middle = (lo + hi) / 2;
      if (first_tile(middle) <= at) {
        lo = middle;
      } else {
        hi = middle;
      }
    }
    return lo;
  }

  SKIM_DEVICE void transpose(const Item& item) {
    if constexpr (Tr::kPaged) {
      if (warp_ == 0) {
        PagedTile<Tr> boxes(item.keys, item.tile, lane_, p_);
        boxes.template load<Storage::kPanels>(smem_.keys, p_.tma_v, &smem_.full, item.keys.head, lane_, p_);
      }
    } else if (ptx::thread_index() == 0) {
      load_key_tile<Tr, Storage::kPanels>(smem_.keys, p_.tma_v, &smem_.full, item.keys, item.tile, p_);
    }
    if (ptx::thread_index() == 0) ptx::tma_store_wait_read<0>();  // the tile before this one has left `columns`
    ptx::mbarrier_wait_parity(&smem_.full, phase_);
    phase_ ^= 1;
    ptx::cta_sync();
    if (lane_ * 4 < Tr::kHeadDimV) transpose_group(warp_ / kGroups, warp_ % kGroups * kTransposedGroup, item.seen);
    ptx::fence_proxy_async();
    ptx::cta_sync();
    if (ptx::thread_index() != 0) return;
    ptx::tma_store(&p_.tma_vt, smem_.columns, (item.place.tile0 + item.tile) * kPanelRowBytes, 0, item.keys.head,
                   item.place.outer);
    ptx::tma_store_commit();
  }

  // Four columns of 16 keys, from `first` on. Keys that nobody sees become zeros: times a probability of 0, a NaN would
  // still be NaN.
  SKIM_DEVICE void transpose_group(int panel, int first, const Span& seen) {
    uint32_t words[kTransposedGroup];
#pragma unroll
    for (int i = 0; i < kTransposedGroup; ++i) {
      const int key = first + key_of_position(i);
      const uint8_t* from = smem_.keys + panel * Storage::kPanelBytes + swizzled_byte(key, lane_ * 4);
      words[i] = key >= seen.lo && key < seen.hi ? ptx::ld_shared(from) : 0;
    }
#pragma unroll
    for (int i = 0; i < kTransposedGroup; i += 4) transpose_quad(words + i);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = panel * kPanelRowBytes + lane_ * 4 + i;
      const int part = column / Transposed<Tr>::kColumns;
      ptx::st_shared16(smem_.columns + swizzled_byte(column % Transposed<Tr>::kColumns, part * Tr::kTileN + first),
                       words[i], words[4 + i], words[8 + i], words[12 + i]);
    }
  }

  // Four words of four bytes: byte i of word j becomes byte j of word i.
  SKIM_DEVICE static void transpose_quad(uint32_t* w) {
    const uint32_t low01 = ptx::prmt(w[0], w[1], 0x5140), low23 = ptx::prmt(w[2], w[3], 0x5140);
    const uint32_t high01 = ptx::prmt(w[0], w[1], 0x7362), high23 = ptx::prmt(w[2], w[3], 0x7362);
    w[0] = ptx::prmt(low01, low23, 0x5410);
    w[1] = ptx::prmt(low01, low23, 0x7632);
    w[2] = ptx::prmt(high01, high23, 0x5410);
    w[3] = ptx::prmt(high01, high23, 0x7632);
  }

  const Params& p_;
  Storage& smem_;
  const int warp_, lane_;
  uint32_t phase_ = 0;
};

template <class Tr>
SKIM_DEVICE void forward(const Params& p) {
  using Storage = TransposeStorage<Tr>;
  static_assert(sizeof(Storage) == Tr::kSmemBytes, "codegen/tiles/sm90_transpose.py counts shared memory differently");
  Storage& smem = *reinterpret_cast<Storage*>(ptx::dynamic_smem());
  if (ptx::thread_index() == 0) {
    ptx::mbarrier_init(&smem.full, 1);
    ptx::fence_mbarrier_init();
  }
  ptx::cta_sync();
  Transpose<Tr>(p, smem).run();
}

}  // namespace skimattn::sm90
