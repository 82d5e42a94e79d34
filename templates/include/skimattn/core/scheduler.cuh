// Work order of the persistent grid: tickets -> (query tile, head, request), longest tiles first inside a section of
// heads whose keys and values fit L2 together. Tickets rise, so each CTA walks the order once, front to back.
#pragma once
#include <skimattn/core/platform.cuh>
#include <skimattn/params.cuh>

namespace skimattn {

// One tile of queries and what it attends to; broadcast from the producer to the consumers as plain words.
struct WorkItem {
  int valid, batch, head, row0, len_q, len_k, q_offset, k_offset;
};
constexpr int kWorkWords = sizeof(WorkItem) / 4;

SKIM_DEVICE int request_rows(const Params& p, int batch) {
  if (p.cu_seqlens_q == nullptr) return p.len_q;
  return ptx::ld_global(p.cu_seqlens_q + batch + 1) - ptx::ld_global(p.cu_seqlens_q + batch);
}

// Lengths that lie on the device were never checked: seqused_k is cut to what the host said is there, since the page
// table, the mask and skip_map end there.
SKIM_DEVICE int request_keys(const Params& p, int batch) {
  if (p.seqused_k != nullptr) return imax(imin(ptx::ld_global(p.seqused_k + batch), p.len_k), 0);
  if (p.cu_seqlens_k == nullptr) return p.len_k;
  return ptx::ld_global(p.cu_seqlens_k + batch + 1) - ptx::ld_global(p.cu_seqlens_k + batch);
}

SKIM_DEVICE WorkItem make_item(const Params& p, int batch, int head, int row0) {
  WorkItem item = {1, batch, head, row0, request_rows(p, batch), request_keys(p, batch), 0, 0};
  if (p.cu_seqlens_q != nullptr) item.q_offset = ptx::ld_global(p.cu_seqlens_q + batch);
  if (p.cu_seqlens_k != nullptr) item.k_offset = ptx::ld_global(p.cu_seqlens_k + batch);
  return item;
}

// Tickets 0 .. count - 1. The counter starts at 0 and the last draw of the whole grid sets it back.
class TileCounter {
 public:
  SKIM_DEVICE TileCounter(uint32_t* counter, int count) : counter_(counter), count_(count) {}
  SKIM_DEVICE int count() const { return count_; }
  SKIM_DEVICE int first() const { return ptx::block_index(); }
  // Call from one lane, once for every ticket below count() that this CTA holds.
  SKIM_DEVICE int next() const {
    const int drawn = static_cast<int>(ptx::atomic_add(counter_, 1u));
    // Note: the first grid_size() tickets are not drawn, but every CTA that had one draws one past the end: `count_`
    // draws in all, however many CTAs there are. Nobody draws after the last of them.
    if (drawn + 1 == count_) ptx::st_global(counter_, 0u);
    return drawn + ptx::grid_size();
  }

 private:
  uint32_t* counter_;
  int count_;
};

// Every request has len_q rows: the order is arithmetic. Sections of `p.heads_in_l2` (request, kv head) pairs.
template <int kTileM>
struct UniformTileScheduler {
  SKIM_DEVICE static int items(const Params& p) { return ceil_div(p.len_q, kTileM) * p.heads_q * p.batch; }
  SKIM_DEVICE static WorkItem decode(const Params& p, int ticket) {
    const int tiles = ceil_div(p.len_q, kTileM), qheads_per_kv = p.heads_q / p.heads_kv;
    const int per_section = p.heads_in_l2 * tiles * qheads_per_kv;
    const int first_pair = ticket / per_section * p.heads_in_l2;
    const int pairs = imin(p.heads_in_l2, p.heads_kv * p.batch - first_pair);
    const int rest = ticket % per_section, level = rest / (pairs * qheads_per_kv),
              slot = rest % (pairs * qheads_per_kv);
    const int pair = first_pair + slot / qheads_per_kv;
    const int head = pair % p.heads_kv * qheads_per_kv + slot % qheads_per_kv;
    return make_item(p, pair / p.heads_kv, head, (tiles - 1 - level) * kTileM);
  }
};

// Ragged batches: a level holds tile number `level` of every request that long, so the longest tiles of all requests
// come first. All 32 lanes call together; the walk only moves forward, one pass over the lengths per level.
// Note: the producer has few registers, so what a pass can find again is not kept.
template <int kTileM>
class VarlenTileScheduler {
 public:
  SKIM_DEVICE static int items(const Params& p) {
    int tiles = 0;
#pragma unroll 1
    for (int b = lane(); b < p.batch; b += kWarpThreads) tiles += request_tiles(p, b);
    return warp_sum(tiles) * p.heads_q;
  }
  SKIM_DEVICE explicit VarlenTileScheduler(const Params& p) {
    if (p.cu_seqlens_q != nullptr) start_section(p);
  }
  SKIM_DEVICE WorkItem decode(const Params& p, int ticket) {
    const int qheads_per_kv = p.heads_q / p.heads_kv;
    int heads = imin(p.heads_in_l2 * qheads_per_kv, p.heads_q - first_head_);
    while (ticket >= before_ + requests_ * heads) {
      before_ += requests_ * heads;
      if (level_ > 0) {
        start_level(p, level_ - 1);
      } else {
        first_head_ += p.heads_in_l2 * qheads_per_kv;
        heads = imin(p.heads_in_l2 * qheads_per_kv, p.heads_q - first_head_);
        start_section(p);
      }
    }
    const int slot = ticket - before_;
    return make_item(p, find_request(p, slot / heads), first_head_ + slot % heads, level_ * kTileM);
  }

 private:
  SKIM_DEVICE static int lane() { return ptx::thread_index() % kWarpThreads; }
  SKIM_DEVICE static int request_tiles(const Params& p, int batch) { return ceil_div(request_rows(p, batch), kTileM); }
  SKIM_DEVICE static int warp_sum(int x) {
#pragma unroll
    for (int lanes = kWarpThreads / 2; lanes > 0; lanes /= 2) x += ptx::shfl_xor(x, lanes);
    return x;
  }
  SKIM_DEVICE void start_section(const Params& p) {
    int most = 1;
#pragma unroll 1
    for (int b = lane(); b < p.batch; b += kWarpThreads) most = imax(most, request_tiles(p, b));
#pragma unroll
    for (int lanes = kWarpThreads / 2; lanes > 0; lanes /= 2) most = imax(most, ptx::shfl_xor(most, lanes));
    start_level(p, most - 1);
  }
  SKIM_DEVICE void start_level(const Params& p, int level) {
    level_ = level;
    int count = 0;
#pragma unroll 1
    for (int b = lane(); b < p.batch; b += kWarpThreads) count += request_tiles(p, b) > level;
    requests_ = warp_sum(count);
  }
  // The `rank`-th request that reaches this level.
  SKIM_DEVICE int find_request(const Params& p, int rank) const {
    for (int base = 0;; base += kWarpThreads) {
      const int b = base + lane();
      uint32_t reaching = ptx::ballot(b < p.batch && request_tiles(p, b) > level_);
      const int count = ptx::popcount(reaching);
      if (rank >= count) {
        rank -= count;
        continue;
      }
      while (rank-- > 0) reaching &= reaching - 1;
      return base + ptx::lowest_bit(reaching);
    }
  }

  int before_ = 0, first_head_ = 0, level_ = 0, requests_ = 0;
};

// The order that the call's layout asks for.
template <int kTileM>
class TileScheduler {
 public:
  SKIM_DEVICE explicit TileScheduler(const Params& p) : ragged_(p) {}
  SKIM_DEVICE static int items(const Params& p) {
    return p.cu_seqlens_q != nullptr ? VarlenTileScheduler<kTileM>::items(p) : UniformTileScheduler<kTileM>::items(p);
  }
  SKIM_DEVICE WorkItem decode(const Params& p, int ticket) {
    return p.cu_seqlens_q != nullptr ? ragged_.decode(p, ticket) : UniformTileScheduler<kTileM>::decode(p, ticket);
  }

 private:
  VarlenTileScheduler<kTileM> ragged_;
};

}  // namespace skimattn
