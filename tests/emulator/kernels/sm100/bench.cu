// Small kernels that keep, or break, one rule of tcgen05 each; tests/cpu/test_emulator_tcgen05.py runs them by name and
// says what it expects. One CTA of two warpgroups: warps 0 to 3 move data in and out of tensor memory, thread 128
// issues products. params.batch picks the kernel; the test appends the entry that calls them by number.
#include <skimattn/sm100/ptx.cuh>

namespace rules {
using namespace skimattn;

constexpr int kImageBytes = 96 * 1024;
constexpr int kChunk = 32;      // registers of one ld or st
constexpr int kColumnsD = 256;  // D comes first, A of tensor memory behind it
constexpr int kIssuerThread = 128;

struct Shared {
  alignas(1024) uint8_t image[kImageBytes];
  alignas(1024) uint64_t full;
  uint64_t other, third;
  uint32_t address, words[32];
};

// What the test asks of `multiply`, at params.page_table.
struct Control {
  uint32_t image_words, steps, instruction, a_columns, accumulate, second_instruction;
  struct Step {
    uint64_t a, b;  // shared-memory descriptors whose start counts from the image; A may be a column instead
  } step[16];
};

SKIM_DEVICE int thread() { return ptx::thread_index(); }
SKIM_DEVICE int warp() { return thread() / kWarpThreads; }
SKIM_DEVICE uint32_t lanes() { return static_cast<uint32_t>(warp() % 4 * kWarpThreads) << 16; }
SKIM_DEVICE bool issuer() { return thread() == kIssuerThread; }
SKIM_DEVICE bool mover() { return warp() < 4; }
SKIM_DEVICE const Control& control(const Params& p) { return *reinterpret_cast<const Control*>(p.page_table); }

// Barriers, tensor memory, operands in shared memory; every thread gets the address.
template <int Columns>
SKIM_DEVICE uint32_t prepare(const Params& p, Shared& s) {
  if (thread() == 0) {
    ptx::mbarrier_init(&s.full, 1);
    ptx::mbarrier_init(&s.other, 1);
    ptx::mbarrier_init(&s.third, 128);
    ptx::fence_mbarrier_init();
  }
  if (warp() == 0) {
    ptx::tcgen05_alloc<Columns>(&s.address);
    ptx::tcgen05_relinquish_alloc_permit();
  }
  const auto* image = reinterpret_cast<const uint32_t*>(p.custom_mask);
  for (uint32_t at = thread(); at < control(p).image_words; at += 256) ptx::st_shared(s.image + at * 4, image[at]);
  ptx::fence_proxy_async();
  ptx::cta_sync();
  ptx::tcgen05_fence_after_thread_sync();
  return ptx::ld_shared(&s.address);
}
template <int Columns>
SKIM_DEVICE void finish(uint32_t address) {
  ptx::cta_sync();
  if (warp() == 0) ptx::tcgen05_dealloc<Columns>(address);
}
SKIM_DEVICE void put(uint32_t address, const uint32_t* from, int stride, int columns) {
  for (int column = 0; column < columns; column += kChunk) {
    ptx::tcgen05_st<kChunk>(address + lanes() + column, from + thread() * stride + column);
  }
  ptx::tcgen05_wait_st();
}
SKIM_DEVICE void take(uint32_t address, float* to, int stride, int columns) {
  for (int column = 0; column < columns; column += kChunk) {
    float d[kChunk];
    ptx::tcgen05_ld<kChunk>(d, address + lanes() + column);
    ptx::tcgen05_wait_ld<kChunk>(d);
    for (int i = 0; i < kChunk; ++i) ptx::st_global(to + thread() * stride + column + i, d[i]);
  }
}
template <class Element>
SKIM_DEVICE void issue(const Params& p, Shared& s, uint32_t address) {
  const Control& c = control(p);
  const uint64_t start = ptx::smem_address(s.image) >> 4;
  for (uint32_t i = 0; i < c.steps; ++i) {
    const bool accumulate = i > 0 || c.accumulate != 0;
    if (c.a_columns != 0) {
      ptx::tcgen05_mma_ts<Element>(address, address + kColumnsD + static_cast<uint32_t>(c.step[i].a),
                                   c.step[i].b + start, c.instruction, accumulate);
    } else {
      ptx::tcgen05_mma_ss<Element>(address, c.step[i].a + start, c.step[i].b + start, c.instruction, accumulate);
    }
  }
}

#define KERNEL(name) SKIM_DEVICE void name([[maybe_unused]] const Params& p, [[maybe_unused]] Shared& s)

// ---- kernels that are right

// D (128 lanes x 256 columns at params.out) += or = A * B, in as many steps as the test says.
template <class Element>
SKIM_DEVICE void multiply(const Params& p, Shared& s) {
  const uint32_t address = prepare<512>(p, s);
  auto* const out = static_cast<float*>(p.out);
  if (mover()) {
    put(address, reinterpret_cast<const uint32_t*>(out), kColumnsD, kColumnsD);
    if (control(p).a_columns != 0) {
      put(address + kColumnsD, reinterpret_cast<const uint32_t*>(p.cu_seqlens_q), kColumnsD, kColumnsD);
    }
  }
  ptx::tcgen05_fence_before_thread_sync();
  ptx::cta_sync();
  if (issuer()) {
    ptx::tcgen05_fence_after_thread_sync();
    issue<Element>(p, s, address);
    ptx::tcgen05_commit(&s.full);
  }
  if (mover()) {
    ptx::mbarrier_wait_parity(&s.full, 0);
    ptx::tcgen05_fence_after_thread_sync();
    take(address, out, kColumnsD, kColumnsD);
  }
  finish<512>(address);
}
KERNEL(multiply_bf16) { multiply<ElementBf16>(p, s); }
KERNEL(multiply_fp16) { multiply<ElementFp16>(p, s); }
KERNEL(multiply_e4m3) { multiply<ElementE4m3>(p, s); }

}  // namespace rules
