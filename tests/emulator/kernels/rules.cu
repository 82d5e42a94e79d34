// Small kernels that keep, or break, one rule each; tests/cpu/test_emulator.py runs them by name and says what it
// expects. One CTA of two warpgroups. params.batch picks the kernel; the test appends the entry that calls them by
// number.
#include <skimattn/sm90/ptx.cuh>
// Comes second: like all of core/ and sm90/ it calls the ptx.cuh that is already there.
#include <skimattn/sm90/descriptor.cuh>

namespace rules {
using namespace skimattn;

constexpr int kN = 64;
constexpr int kTile = 64 * kPanelRowBytes;  // 64 rows of one 64-column panel
using Mma = ptx::Wgmma<ElementBf16, kN>;

struct Shared {
  alignas(1024) uint8_t a[kTile];
  alignas(1024) uint8_t b[kTile];
  alignas(1024) uint64_t full;
  uint64_t other, unused;
  uint32_t words[64];
};

SKIM_DEVICE int thread() { return ptx::thread_index(); }
SKIM_DEVICE bool leader() { return thread() == 0; }
SKIM_DEVICE bool in_group() { return thread() < kGroupThreads; }

SKIM_DEVICE void init(Shared& s, int count = 1) {
  if (leader()) {
    ptx::mbarrier_init(&s.full, count);
    ptx::mbarrier_init(&s.other, count);
    ptx::fence_mbarrier_init();
  }
  ptx::cta_sync();
}
SKIM_DEVICE void load(const Params& p, Shared& s, void* to) { ptx::tma_load(to, &p.tma_q, &s.full, 0, 0, 0, 0, 0); }
// Both tiles arrive, and every thread knows.
SKIM_DEVICE void load_both(const Params& p, Shared& s) {
  init(s);
  if (leader()) {
    ptx::mbarrier_arrive_expect_tx(&s.full, 2 * kTile);
    load(p, s, s.a);
    ptx::tma_load(s.b, &p.tma_k, &s.full, 0, 0, 0, 0, 0);
  }
  ptx::mbarrier_wait_parity(&s.full, 0);
}
SKIM_DEVICE void issue(Shared& s, float (&d)[kN / 2]) {
  Mma::ss(d, sm90::k_major(s.a), sm90::k_major(s.b), false);
  ptx::wgmma_commit();
}
SKIM_DEVICE void finish(float (&d)[kN / 2]) { ptx::wgmma_wait<0>(); }
SKIM_DEVICE void write_words(const Params& p, const float (&d)[kN / 2]) {
  float* out = static_cast<float*>(p.out);
  const int row = thread() / 32 * 16 + thread() % 32 / 4, column = thread() % 4 * 2;
  for (int i = 0; i < kN / 2; ++i) {
    ptx::st_global(out + (row + (i >> 1 & 1) * 8) * kN + (i >> 2) * 8 + column + (i & 1), d[i]);
  }
}
SKIM_DEVICE void fill(uint8_t* tile) {
  for (int at = thread() * 4; at < kTile; at += 2 * kGroupThreads * 4) ptx::st_shared(tile + at, 0x3f803f80);
}
SKIM_DEVICE void store(const Params& p, Shared& s, int row = 0) { ptx::tma_store(&p.tma_o, s.a, 0, row, 0, 0); }

#define KERNEL(name) SKIM_DEVICE void name([[maybe_unused]] const Params& p, [[maybe_unused]] Shared& s)

// ---- kernels that are right

// A box travels through shared memory; len_q and len_k are where it starts and where it goes.
KERNEL(copy) {
  init(s);
  if (!leader()) return;
  ptx::mbarrier_arrive_expect_tx(&s.full, kTile);
  ptx::tma_load(s.a, &p.tma_q, &s.full, 0, p.window_left, p.len_q, p.heads_q, p.heads_kv);
  ptx::mbarrier_wait_parity(&s.full, 0);
  ptx::tma_store(&p.tma_o, s.a, p.window_right, p.len_k, 0, 0);
  ptx::tma_store_commit();
  ptx::tma_store_wait<0>();
}
// The same box in copies of len_k rows each, one below the other.
KERNEL(copy_in_pieces) {
  init(s);
  if (!leader()) return;
  ptx::mbarrier_arrive_expect_tx(&s.full, kTile);
  for (int row = 0; row < 64; row += p.len_k) {
    ptx::tma_load(s.a + row * kPanelRowBytes, &p.tma_q, &s.full, 0, 0, row, 0, 0);
  }
  ptx::mbarrier_wait_parity(&s.full, 0);
  store(p, s);
  ptx::tma_store_commit();
  ptx::tma_store_wait<0>();
}
// 64 x 64 x 64 from shared memory, both K-major.
KERNEL(product) {
  load_both(p, s);
  if (!in_group()) return;
  float d[kN / 2];
  ptx::wgmma_fence();
  for (int i = 0; i < 4; ++i) {
    Mma::ss(d, sm90::advance(sm90::k_major(s.a), i * 32), sm90::advance(sm90::k_major(s.b), i * 32), i > 0);
  }
  ptx::wgmma_commit();
  finish(d);
  write_words(p, d);
}
// A[row][k] = row - k, as the four k16 steps of A operands.
SKIM_DEVICE void fill_differences(uint32_t (&a)[4][4]) {
  const int row = thread() / 32 * 16 + thread() % 32 / 4;
  for (int i = 0; i < 16; ++i) {
    const int k = i / 4 * 16 + (i % 4 >> 1) * 8 + thread() % 4 * 2, r = row + (i % 2) * 8;
    a[i / 4][i % 4] = ptx::pack(ElementBf16{}, static_cast<float>(r - k), static_cast<float>(r - k - 1));
  }
}
// A from registers, B = the tile as [k][n]; accumulates onto 1.
KERNEL(product_registers) {
  load_both(p, s);
  if (!in_group()) return;
  float d[kN / 2];
  for (float& x : d) x = 1.0f;
  uint32_t a[4][4];
  fill_differences(a);
  ptx::wgmma_fence();
  for (int i = 0; i < 4; ++i) Mma::rs(d, a[i], sm90::advance(sm90::mn_major(s.b, kTile), i * 2048));
  ptx::wgmma_commit();
  finish(d);
  write_words(p, d);
}
// The same A from registers, B as [n][k]; the first step overwrites what d held.
KERNEL(product_registers_k_major) {
  load_both(p, s);
  if (!in_group()) return;
  float d[kN / 2];
  for (float& x : d) x = 1e6f;
  uint32_t a[4][4];
  fill_differences(a);
  ptx::wgmma_fence();
  for (int i = 0; i < 4; ++i) Mma::rs_k_major(d, a[i], sm90::advance(sm90::k_major(s.b), i * 32), i > 0);
  ptx::wgmma_commit();
  finish(d);
  write_words(p, d);
}
// Operands as the test has laid them out (16384 bytes at custom_mask) through its own descriptors (A and B of each k16
// step at page_table, starts counted from shared memory): both K-major, or, if len_q is set, A as above and B MN-major.
KERNEL(product_of_layout) {
  const auto* image = reinterpret_cast<const uint32_t*>(p.custom_mask);
  for (int at = thread(); at < 2 * kTile / 4; at += 2 * kGroupThreads) ptx::st_shared(s.a + at * 4, image[at]);
  ptx::fence_proxy_async();
  ptx::cta_sync();
  if (!in_group()) return;
  const auto* steps = reinterpret_cast<const uint64_t*>(p.page_table);
  const uint64_t start = ptx::smem_address(s.a) >> 4;
  float d[kN / 2] = {};
  uint32_t a[4][4];
  fill_differences(a);
  ptx::wgmma_fence();
  for (int i = 0; i < 4; ++i) {
    if (p.len_q == 0) {
      Mma::ss(d, steps[2 * i] + start, steps[2 * i + 1] + start, i > 0);
    } else {
      Mma::rs(d, a[i], steps[2 * i + 1] + start);
    }
  }
  ptx::wgmma_commit();
  finish(d);
  write_words(p, d);
}
// The same of 8-bit elements: four k32 steps, both operands K-major. If len_q is set, A comes from registers, four words
// for each thread and step at sinks.
KERNEL(product_of_bytes) {
  using Bytes = ptx::Wgmma<ElementE4m3, kN>;
  const auto* image = reinterpret_cast<const uint32_t*>(p.custom_mask);
  for (int at = thread(); at < 2 * kTile / 4; at += 2 * kGroupThreads) ptx::st_shared(s.a + at * 4, image[at]);
  ptx::fence_proxy_async();
  ptx::cta_sync();
  if (!in_group()) return;
  const auto* steps = reinterpret_cast<const uint64_t*>(p.page_table);
  const auto* words = reinterpret_cast<const uint32_t*>(p.sinks) + thread() * 16;
  const uint64_t start = ptx::smem_address(s.a) >> 4;
  float d[kN / 2] = {};
  uint32_t a[4][4];
  for (int i = 0; i < 16; ++i) a[i / 4][i % 4] = p.len_q == 0 ? 0 : words[i];
  ptx::wgmma_fence();
  for (int i = 0; i < 4; ++i) {
    if (p.len_q == 0) {
      Bytes::ss(d, steps[2 * i] + start, steps[2 * i + 1] + start, i > 0);
    } else {
      Bytes::rs_k_major(d, a[i], steps[2 * i + 1] + start, i > 0);
    }
  }
  ptx::wgmma_commit();
  finish(d);
  write_words(p, d);
}
// What the lanes of a warp tell each other, 5 words a thread.
KERNEL(warp_exchange) {
  uint32_t* out = static_cast<uint32_t*>(p.out) + thread() * 5;
  const int lane = thread() % 32;
  ptx::st_global(out + 0, static_cast<uint32_t>(ptx::shfl(thread(), 5)));
  ptx::st_global(out + 1, static_cast<uint32_t>(ptx::redux_max((lane * 7 + 3) % 32 - thread() / 32 * 100)));
  ptx::st_global(out + 2, ptx::ballot(lane % 3 == 0));
  ptx::st_global(out + 3, static_cast<uint32_t>(ptx::warp_any(thread() == 37)));
  ptx::st_global(out + 4, static_cast<uint32_t>(ptx::shfl_xor(static_cast<float>(lane), 1)));
}
// One warpgroup tells the other through a named barrier and an mbarrier.
KERNEL(hand_over) {
  init(s, 128);
  if (in_group()) {
    if (thread() < 64) ptx::st_shared(&s.words[thread()], thread() * 3);
    ptx::bar_arrive(1, 256);
    ptx::mbarrier_wait_parity(&s.full, 0);
  } else {
    ptx::bar_sync(1, 256);
    ptx::st_global(static_cast<uint32_t*>(p.out) + thread() - 128, ptx::ld_shared(&s.words[thread() % 64]));
    ptx::mbarrier_arrive(&s.full);
  }
}
KERNEL(registers) {
  if (in_group()) {
    ptx::setmaxnreg_dec<24>();
  } else {
    ptx::setmaxnreg_inc<256>();
  }
}
// Written by threads, fenced, stored by TMA.
KERNEL(store_written) {
  fill(s.a);
  ptx::fence_proxy_async();
  ptx::cta_sync();
  if (!leader()) return;
  store(p, s);
  ptx::tma_store_commit();
  ptx::tma_store_wait<0>();
}

// ---- mbarriers

KERNEL(nobody_arrives) {
  init(s, 2);
  if (leader()) ptx::mbarrier_arrive(&s.full);
  if (thread() == 7) ptx::mbarrier_wait_parity(&s.full, 0);
}
KERNEL(expect_too_much) {
  init(s);
  if (!leader()) return;
  ptx::mbarrier_arrive_expect_tx(&s.full, kTile + 16);
  load(p, s, s.a);
  ptx::mbarrier_wait_parity(&s.full, 0);
}
KERNEL(expect_too_little) {
  init(s);
  if (!leader()) return;
  ptx::mbarrier_arrive_expect_tx(&s.full, kTile - 16);
  load(p, s, s.a);
  ptx::mbarrier_wait_parity(&s.full, 0);
}
KERNEL(expect_overflow) {
  init(s);
  if (leader()) ptx::mbarrier_arrive_expect_tx(&s.full, 1 << 20);
}
KERNEL(arrive_too_often) {
  init(s);
  if (!leader()) return;
  ptx::mbarrier_arrive_expect_tx(&s.full, kTile);
  ptx::mbarrier_arrive(&s.full);
}
KERNEL(arrive_unseen) {
  init(s);
  if (!leader()) return;
  ptx::mbarrier_arrive(&s.full);
  ptx::mbarrier_arrive(&s.full);
}
KERNEL(wrong_parity) {
  init(s);
  if (leader()) ptx::mbarrier_arrive(&s.full);
  ptx::mbarrier_wait_parity(&s.full, 0);
  ptx::mbarrier_wait_parity(&s.full, 1);
}
KERNEL(init_twice) {
  init(s);
  if (leader()) ptx::mbarrier_init(&s.full, 1);
}
KERNEL(init_misaligned) {
  if (leader()) ptx::mbarrier_init(reinterpret_cast<uint64_t*>(&s.words[1]), 1);
}
KERNEL(uninitialised) {
  init(s);
  if (leader()) ptx::mbarrier_arrive(&s.unused);
}
KERNEL(init_without_fence) {
  if (leader()) ptx::mbarrier_init(&s.full, 1);
  ptx::cta_sync();
  if (thread() == 1) ptx::mbarrier_arrive(&s.full);
}
KERNEL(write_over_barrier) {
  init(s);
  if (leader()) ptx::st_shared(&s.full, 0);
}

// ---- named barriers and warps

KERNEL(half_a_barrier) {
  if (in_group()) ptx::bar_sync(3, 256);
}
KERNEL(barrier_id) { ptx::bar_sync(16, 256); }
KERNEL(barrier_count) { ptx::bar_sync(1, 48); }
KERNEL(barrier_mismatch) { ptx::bar_sync(1, in_group() ? 256 : 128); }
KERNEL(barrier_twice) {
  if (!in_group()) return;
  ptx::bar_arrive(1, 256);
  ptx::bar_arrive(1, 256);
}
KERNEL(one_lane_syncs) {
  if (leader()) ptx::bar_sync(1, 32);
  if (thread() > 0 && thread() < 32) ptx::warp_sync();
}
KERNEL(lanes_diverge) {
  if (thread() % 2 == 0) {
    ptx::warp_sync();
  } else {
    ptx::ballot(true);
  }
}
KERNEL(register_multiple) { ptx::setmaxnreg_dec<100>(); }
KERNEL(register_direction) { ptx::setmaxnreg_inc<24>(); }
// One warpgroup gives, the others take; len_q says whether it gives enough for three of them.
KERNEL(register_sum) {
  if (!in_group()) {
    ptx::setmaxnreg_inc<240>();
  } else if (p.len_q == 24) {
    ptx::setmaxnreg_dec<24>();
  } else {
    ptx::setmaxnreg_dec<32>();
  }
}

// ---- TMA

KERNEL(load_misaligned) {
  init(s);
  if (leader()) load(p, s, s.a + 1088);
}
KERNEL(load_out_of_bounds) {
  init(s);
  if (leader()) load(p, s, s.b + kTile);
}
KERNEL(read_early) {
  init(s);
  if (!leader()) return;
  ptx::mbarrier_arrive_expect_tx(&s.full, kTile);
  load(p, s, s.a);
  ptx::ld_shared(s.a);
  ptx::mbarrier_wait_parity(&s.full, 0);
}
KERNEL(load_twice) {
  init(s);
  if (!leader()) return;
  ptx::mbarrier_arrive_expect_tx(&s.full, 2 * kTile);
  load(p, s, s.a);
  load(p, s, s.a);
  ptx::mbarrier_wait_parity(&s.full, 0);
}
KERNEL(load_and_leave) {
  init(s);
  if (!leader()) return;
  ptx::mbarrier_arrive_expect_tx(&s.full, kTile);
  load(p, s, s.a);
}
KERNEL(store_without_fence) {
  fill(s.a);
  ptx::cta_sync();
  if (leader()) store(p, s);
}
KERNEL(overwrite_store) {
  fill(s.a);
  ptx::fence_proxy_async();
  ptx::cta_sync();
  if (!leader()) return;
  store(p, s);
  ptx::tma_store_commit();
  ptx::st_shared(s.a, 0);
  ptx::tma_store_wait<0>();
}
KERNEL(store_uncommitted) {
  fill(s.a);
  ptx::fence_proxy_async();
  ptx::cta_sync();
  if (leader()) store(p, s);
}
KERNEL(store_and_leave) {
  fill(s.a);
  ptx::fence_proxy_async();
  ptx::cta_sync();
  if (!leader()) return;
  store(p, s);
  ptx::tma_store_commit();
}

// ---- wgmma

KERNEL(mma_early) {
  init(s);
  if (leader()) {
    ptx::mbarrier_arrive_expect_tx(&s.full, kTile);
    load(p, s, s.a);
  }
  ptx::cta_sync();
  if (!in_group()) return;
  float d[kN / 2];
  ptx::wgmma_fence();
  issue(s, d);
  finish(d);
}
KERNEL(mma_without_fence) {
  load_both(p, s);
  if (!in_group()) return;
  float d[kN / 2];
  issue(s, d);
  finish(d);
}
KERNEL(mma_without_second_fence) {
  load_both(p, s);
  if (!in_group()) return;
  float d[kN / 2];
  ptx::wgmma_fence();
  issue(s, d);
  finish(d);
  d[0] = 0.0f;
  issue(s, d);
  finish(d);
}
KERNEL(mma_without_wait) {
  load_both(p, s);
  if (!in_group()) return;
  float d[kN / 2];
  ptx::wgmma_fence();
  issue(s, d);
}
KERNEL(mma_without_commit) {
  load_both(p, s);
  if (!in_group()) return;
  float d[kN / 2];
  ptx::wgmma_fence();
  Mma::ss(d, sm90::k_major(s.a), sm90::k_major(s.b), false);
  finish(d);
}
// Reads its result one wait too soon: NaN comes out.
KERNEL(mma_read_early) {
  load_both(p, s);
  if (!in_group()) return;
  float d[kN / 2];
  ptx::wgmma_fence();
  issue(s, d);
  ptx::wgmma_wait<1>();
  write_words(p, d);
  finish(d);
}
KERNEL(mma_write_early) {
  load_both(p, s);
  if (!in_group()) return;
  float d[kN / 2];
  ptx::wgmma_fence();
  issue(s, d);
  d[3] *= 2.0f;
  finish(d);
}
KERNEL(mma_change_a) {
  load_both(p, s);
  if (!in_group()) return;
  float d[kN / 2] = {};
  uint32_t a[4] = {};
  ptx::wgmma_fence();
  Mma::rs(d, a, sm90::mn_major(s.b, kTile));
  ptx::wgmma_commit();
  a[2] = 5;
  finish(d);
}
KERNEL(mma_overwrite) {
  load_both(p, s);
  if (in_group()) {
    float d[kN / 2];
    ptx::wgmma_fence();
    issue(s, d);
    ptx::cta_sync();
    ptx::cta_sync();
    finish(d);
  } else {
    ptx::cta_sync();
    if (thread() == 130) ptx::st_shared(s.b, 1);
    ptx::cta_sync();
  }
}
KERNEL(mma_overwrite_by_load) {
  load_both(p, s);
  if (!in_group()) return;
  float d[kN / 2];
  ptx::wgmma_fence();
  issue(s, d);
  ptx::bar_sync(1, 128);
  if (leader()) {
    ptx::mbarrier_arrive_expect_tx(&s.full, kTile);
    load(p, s, s.a);
  }
  finish(d);
}
KERNEL(mma_unfenced_write) {
  fill(s.a);
  fill(s.b);
  ptx::cta_sync();
  if (!in_group()) return;
  float d[kN / 2];
  ptx::wgmma_fence();
  issue(s, d);
  finish(d);
}
KERNEL(load_over_unfenced_write) {
  init(s);
  fill(s.a);
  ptx::cta_sync();
  if (!leader()) return;
  ptx::mbarrier_arrive_expect_tx(&s.full, kTile);
  load(p, s, s.a);
  ptx::mbarrier_wait_parity(&s.full, 0);
}
SKIM_DEVICE void run_descriptor(const Params& p, Shared& s, uint64_t bits) {
  load_both(p, s);
  if (!in_group()) return;
  float d[kN / 2];
  ptx::wgmma_fence();
  Mma::ss(d, sm90::k_major(s.a), bits, false);
  ptx::wgmma_commit();
  finish(d);
}
KERNEL(descriptor_base_offset) { run_descriptor(p, s, sm90::k_major(s.b) | 1ull << 50); }
KERNEL(descriptor_reserved) { run_descriptor(p, s, sm90::k_major(s.b) | 1ull << 53); }
KERNEL(descriptor_bounds) { run_descriptor(p, s, sm90::advance(sm90::k_major(s.b), 2 * kTile)); }
KERNEL(descriptor_start) { run_descriptor(p, s, sm90::advance(sm90::k_major(s.b), 256)); }
KERNEL(descriptor_differs) { run_descriptor(p, s, sm90::advance(sm90::k_major(s.b), thread() < 64 ? 0 : 32)); }
KERNEL(three_warps) {
  load_both(p, s);
  if (thread() >= 96) return;
  float d[kN / 2];
  ptx::wgmma_fence();
  issue(s, d);
  finish(d);
}
KERNEL(wait_counts_differ) {
  load_both(p, s);
  if (!in_group()) return;
  float d[kN / 2];
  ptx::wgmma_fence();
  issue(s, d);
  if (thread() < 64) {
    ptx::wgmma_wait<0>();
  } else {
    ptx::wgmma_wait<1>();
  }
}

// ---- memory

KERNEL(shared_misaligned) {
  if (leader()) ptx::st_shared_zero16(s.a + 8);
}
KERNEL(shared_out_of_bounds) {
  if (leader()) ptx::ld_shared(reinterpret_cast<uint8_t*>(&s) + sizeof(Shared));
}
KERNEL(global_out_of_bounds) {
  if (leader()) ptx::st_global(static_cast<uint32_t*>(p.out) + p.len_q, 1u);
}
KERNEL(null_pointer) {
  if (thread() == 3) *reinterpret_cast<volatile int*>(8) = 1;
}
KERNEL(deep_recursion) {
  volatile char frame[4096];
  frame[0] = 1;
  if (thread() == 0) deep_recursion(p, s);
  frame[1] = frame[0];
}
KERNEL(endless_loop) {
  while (leader() && static_cast<volatile const Params&>(p).len_q != -1) {
  }
}

// ---- order: each of these takes the right path in this run, and only luck makes it so

KERNEL(read_without_barrier) {
  if (leader()) ptx::st_shared(&s.words[0], 1);
  ptx::shfl(0, 0);  // brings the lanes together, but orders no memory
  if (thread() == 1) ptx::ld_shared(&s.words[0]);
}
KERNEL(overwrite_without_barrier) {
  if (leader()) ptx::st_shared(&s.words[0], 1);
  ptx::cta_sync();
  if (thread() == 1) ptx::ld_shared(&s.words[0]);
  ptx::shfl(0, 0);
  if (leader()) ptx::st_shared(&s.words[0], 2);
}
KERNEL(write_twice) {
  if (thread() % 32 == 0) ptx::st_shared(&s.words[0], thread());
}
KERNEL(arrive_without_warp_sync) {
  init(s);
  if (thread() < 32) {
    ptx::st_shared(&s.words[thread()], 1);
    if (leader()) ptx::mbarrier_arrive(&s.full);
  } else {
    ptx::mbarrier_wait_parity(&s.full, 0);
    ptx::ld_shared(&s.words[thread() % 32]);
  }
}
KERNEL(init_without_sync) {
  if (leader()) {
    ptx::mbarrier_init(&s.full, 1);
    ptx::fence_mbarrier_init();
  }
  ptx::shfl(0, 0);
  if (thread() == 1) ptx::mbarrier_arrive(&s.full);
}
KERNEL(mma_by_one_informed_warp) {
  init(s);
  if (leader()) {
    ptx::mbarrier_arrive_expect_tx(&s.full, 2 * kTile);
    load(p, s, s.a);
    load(p, s, s.b);
  }
  if (!in_group()) return;
  if (thread() < 32) ptx::mbarrier_wait_parity(&s.full, 0);
  float d[kN / 2];
  ptx::wgmma_fence();
  issue(s, d);
  finish(d);
}
KERNEL(mma_fence_after_barrier) {
  fill(s.a);
  fill(s.b);
  ptx::cta_sync();
  ptx::fence_proxy_async();
  if (!in_group()) return;
  float d[kN / 2];
  ptx::wgmma_fence();
  issue(s, d);
  finish(d);
}
KERNEL(load_after_one_warps_wait) {
  load_both(p, s);
  if (!in_group()) return;
  float d[kN / 2];
  ptx::wgmma_fence();
  issue(s, d);
  finish(d);
  if (leader()) {
    ptx::mbarrier_arrive_expect_tx(&s.full, kTile);
    load(p, s, s.a);
    ptx::mbarrier_wait_parity(&s.full, 1);
  }
}
KERNEL(load_after_read) {
  init(s);
  if (thread() == 1) ptx::ld_shared(s.a);
  ptx::shfl(0, 0);
  if (!leader()) return;
  ptx::mbarrier_arrive_expect_tx(&s.full, kTile);
  load(p, s, s.a);
  ptx::mbarrier_wait_parity(&s.full, 0);
}
KERNEL(load_after_fence) {
  init(s);
  if (thread() == 1) ptx::st_shared(s.a, 5);
  ptx::cta_sync();
  ptx::fence_proxy_async();
  ptx::shfl(0, 0);
  if (!leader()) return;
  ptx::mbarrier_arrive_expect_tx(&s.full, kTile);
  load(p, s, s.a);
  ptx::mbarrier_wait_parity(&s.full, 0);
}
KERNEL(overwrite_after_store_wait) {
  fill(s.a);
  ptx::fence_proxy_async();
  ptx::cta_sync();
  if (leader()) {
    store(p, s);
    ptx::tma_store_commit();
    ptx::tma_store_wait_read<0>();
  }
  ptx::shfl(0, 0);
  if (thread() == 1) ptx::st_shared(s.a, 5);
}
// Right: everybody says the same, then everybody may read it.
KERNEL(same_value) {
  if (thread() % 32 == 0) ptx::st_shared(&s.words[0], 5);
  ptx::cta_sync();
  if (thread() < 128) ptx::st_global(static_cast<uint32_t*>(p.out) + thread(), ptx::ld_shared(&s.words[0]));
}

}  // namespace rules
