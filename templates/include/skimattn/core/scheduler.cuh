// Work order of the persistent grid: tickets -> (query tile, head, request), longest tiles first inside a section of
// heads (and, of a ragged batch, requests) whose keys and values fit L2 together. TileCounter rise, so each CTA walks
// the order once, front to back.
#pragma once
#include <skimattn/core/platform.cuh>
#include <skimattn/params.cuh>

namespace skimattn {

// One tile of queries and what it attends to; broadcast from the producer to the consumers as plain words.
struct WorkItem {
  int valid, batch, head, row0, len_q, len_k, q_offset, k_offset;
};
constexpr int kWorkWords = sizeof(WorkItem) / 4;

// Lengths that lie on the device were never checked: each is cut to what the host said is there, since skip_map, the
// page table and the mask end there. `offsets` and `used` may be null.
SKIM_DEVICE int request_length(const int32_t* offsets, const int32_t* used, int most, int batch) {
  int length = most;
  if (offsets != nullptr) length = imin(length, ptx::ld_global(offsets + batch + 1) - ptx::ld_global(offsets + batch));
  if (used != nullptr) length = imin(length, ptx::ld_global(used + batch));
  return imax(length, 0);
}
SKIM_DEVICE int request_rows(const Params& p, int batch) {
  return request_length(p.cu_seqlens_q, p.seqused_q, p.len_q, batch);
}
SKIM_DEVICE int request_keys(const Params& p, int batch) {
  return request_length(p.cu_seqlens_k, p.seqused_k, p.len_k, batch);
}

SKIM_DEVICE WorkItem make_item(const Params& p, int batch, int head, int row0) {
  WorkItem item = {1, batch, head, row0, request_rows(p, batch), request_keys(p, batch), 0, 0};
  if (p.cu_seqlens_q != nullptr) item.q_offset = ptx::ld_global(p.cu_seqlens_q + batch);
  if (p.cu_seqlens_k != nullptr) item.k_offset = ptx::ld_global(p.cu_seqlens_k + batch);
  return item;
}

// TileCounter 0, 1, ... The counter starts at 0, and the last draw of the whole grid sets it back.
class TileCounter {
 public:
  SKIM_DEVICE explicit TileCounter(uint32_t* counter) : counter_(counter) {}
  SKIM_DEVICE int first() const { return ptx::block_index(); }
  // Call from one lane, once for every ticket that this CTA holds, the one past the end included.
  SKIM_DEVICE int next() const { return static_cast<int>(ptx::atomic_add(counter_, 1u)) + ptx::grid_size(); }
  // `drawn` is what next() gave for the ticket past the end of `count` items.
  // Note: one draw follows each of the `count` tickets, and one each CTA's ticket past the end: the last of them all
  // gives count - 1 + 2 * grid_size(), and nobody draws after it.
  SKIM_DEVICE void finish(int drawn, int count) const {
    if (drawn + 1 == count + 2 * ptx::grid_size()) ptx::st_global(counter_, 0u);
  }

 private:
  uint32_t* counter_;
};

// The requests that a launch computes: where kRounds, those of its round alone.
template <bool kRounds>
SKIM_DEVICE int first_request(const Params& p) {
  return kRounds ? p.first_request : 0;
}
template <bool kRounds>
SKIM_DEVICE int end_request(const Params& p) {
  return kRounds ? imin(p.first_request + p.round_requests, p.batch) : p.batch;
}

// Every request has len_q rows: the order is arithmetic. Sections of `p.heads_in_l2` (request, kv head) pairs.
template <int kTileM, bool kRounds>
struct UniformTileScheduler {
  SKIM_DEVICE static int requests(const Params& p) { return end_request<kRounds>(p) - first_request<kRounds>(p); }
  SKIM_DEVICE static int items(const Params& p) { return ceil_div(p.len_q, kTileM) * p.heads_q * requests(p); }
  SKIM_DEVICE static WorkItem decode(const Params& p, int ticket) {
    if (ticket >= items(p)) return {};
    const int tiles = ceil_div(p.len_q, kTileM), qheads_per_kv = p.heads_q / p.heads_kv;
    const int per_section = p.heads_in_l2 * tiles * qheads_per_kv;
    const int first_pair = ticket / per_section * p.heads_in_l2;
    const int pairs = imin(p.heads_in_l2, p.heads_kv * requests(p) - first_pair);
    const int rest = ticket % per_section, level = rest / (pairs * qheads_per_kv),
              slot = rest % (pairs * qheads_per_kv);
    const int pair = first_pair + slot / qheads_per_kv;
    const int head = pair % p.heads_kv * qheads_per_kv + slot % qheads_per_kv;
    return make_item(p, first_request<kRounds>(p) + pair / p.heads_kv, head, (tiles - 1 - level) * kTileM);
  }
};

// Whether a request is computed by decode kernels: codegen/tiles/split.py has the rule.
SKIM_DEVICE bool decodes(const Params& p, int len_q, int len_k) {
  const int packed = len_q * (p.heads_q / p.heads_kv);
  if (len_k - len_q < p.decode_more_keys) return false;
  return packed <= p.decode_always_rows || (packed <= p.decode_most_rows && len_k >= p.decode_keys_per_row * packed);
}

// Requests with numbers of units of their own, a section of `p.requests_in_l2` of them and Units::heads_step() heads
// after the other. A level holds unit number `level` of every request of the section that has so many, so what is
// longest comes first. Each of the 32 lanes, which all call together, knows one request, so an item costs a few
// instructions, and the walk, which only moves forward, loads every length once: how many requests there are does not
// show.
template <class Units>
class LevelScheduler {
 public:
  // Where an item is; `request` is -1 past the end.
  struct Located {
    int request, head, level;
  };

  // From request `first` up to `end`.
  SKIM_DEVICE void start(const Params& p, int first, int end) {
    end_ = end;
    start_requests(p, first);
  }

  // Not valid past the end.
  SKIM_DEVICE Located locate(const Params& p, int ticket) {
    int per_level = level_items(p);
#pragma unroll 1
    for (int last = last_level(); ticket >= before_ + (level_ - last + 1) * per_level; last = last_level()) {
      before_ += (level_ - last + 1) * per_level;
      if (!advance(p, last)) return {-1, 0, 0};
      per_level = level_items(p);
    }
    const int rest = ticket - before_, slot = rest % per_level, heads = section_heads(p);
    return {first_request_ + find_lane(slot / heads), first_head_ + slot % heads, level_ - rest / per_level};
  }
  // Once locate() was past the end.
  SKIM_DEVICE int items() const { return before_; }

 private:
  SKIM_DEVICE static int lane() { return ptx::thread_index() % kWarpThreads; }
  SKIM_DEVICE int section_heads(const Params& p) const {
    return imin(Units::heads_step(p), Units::heads(p) - first_head_);
  }
  SKIM_DEVICE uint32_t reaching() const { return ptx::ballot(units_ > level_); }
  SKIM_DEVICE int level_items(const Params& p) const { return ptx::popcount(reaching()) * section_heads(p); }

  // The `rank`-th request that reaches these levels.
  SKIM_DEVICE int find_lane(int rank) const {
    const uint32_t before = reaching() & ((1u << lane()) - 1);
    return ptx::lowest_bit(ptx::ballot(units_ > level_ && ptx::popcount(before) == rank));
  }
  // On to the next levels, heads or requests; false where there are none.
  SKIM_DEVICE bool advance(const Params& p, int last) {
    if (last > 0) {
      level_ = last - 1;
      return true;
    }
    first_head_ += Units::heads_step(p);
    if (level_ < 0 || first_head_ >= Units::heads(p)) return start_requests(p, first_request_ + p.requests_in_l2);
    level_ = ptx::redux_max(units_) - 1;
    return true;
  }
  SKIM_DEVICE bool start_requests(const Params& p, int first) {
    if (first >= end_) return false;
    first_request_ = first;
    first_head_ = units_ = 0;
    if (lane() < imin(p.requests_in_l2, end_ - first)) units_ = Units::of_request(p, first + lane());
    level_ = ptx::redux_max(units_) - 1;
    return true;
  }
  SKIM_DEVICE int last_level() const { return ptx::redux_max(units_ > level_ ? 0 : units_); }

  int units_ = 0;  // of this lane's request
  int first_request_ = 0, first_head_ = 0, before_ = 0, level_ = -1, end_ = 0;
};

// Query tiles of requests of their own lengths.
template <int kTileM>
struct QueryTiles {
  SKIM_DEVICE static int heads(const Params& p) { return p.heads_q; }
  SKIM_DEVICE static int heads_step(const Params& p) { return p.heads_in_l2 * (p.heads_q / p.heads_kv); }
  SKIM_DEVICE static int of_request(const Params& p, int request) {
    const int rows = request_rows(p, request);
    if (p.decode_always_rows > 0 && decodes(p, rows, request_keys(p, request))) return 0;
    return ceil_div(rows, kTileM);
  }
};

template <int kTileM, bool kRounds>
class VarlenTileScheduler {
 public:
  SKIM_DEVICE explicit VarlenTileScheduler(const Params& p) {
    if (is_varlen(p)) levels_.start(p, first_request<kRounds>(p), end_request<kRounds>(p));
  }
  // Whether requests have rows, or keys that decide over who computes them, of their own.
  SKIM_DEVICE static bool is_varlen(const Params& p) {
    return p.cu_seqlens_q != nullptr || p.seqused_q != nullptr || p.decode_always_rows > 0;
  }
  // Not valid past the end.
  SKIM_DEVICE WorkItem decode(const Params& p, int ticket) {
    const auto found = levels_.locate(p, ticket);
    return found.request < 0 ? WorkItem{} : make_item(p, found.request, found.head, found.level * kTileM);
  }
  SKIM_DEVICE int items() const { return levels_.items(); }

 private:
  LevelScheduler<QueryTiles<kTileM>> levels_;
};

// The order that the call's layout asks for. kRounds: the launch may be one of several, each of some requests.
template <int kTileM, bool kRounds>
class TileScheduler {
 public:
  using Uniform = UniformTileScheduler<kTileM, kRounds>;
  using Varlen = VarlenTileScheduler<kTileM, kRounds>;

  SKIM_DEVICE explicit TileScheduler(const Params& p) : ragged_(p) {}
  // TileCounter must rise. Not valid past the end.
  SKIM_DEVICE WorkItem decode(const Params& p, int ticket) {
    return Varlen::is_varlen(p) ? ragged_.decode(p, ticket) : Uniform::decode(p, ticket);
  }
  // How many there were, once decode() was past the end.
  SKIM_DEVICE int items(const Params& p) const { return Varlen::is_varlen(p) ? ragged_.items() : Uniform::items(p); }

 private:
  Varlen ragged_;
};

}  // namespace skimattn
