// A short program of tcgen05 products per CTA: shared memory and tensor memory are filled as the test says, one thread
// issues the products, and all of tensor memory comes back. tests/helpers/probes.py says what must be in it. Written
// against the ptx:: functions, so that it runs on the emulator and, by bench/first_b200_run.py, on a Blackwell GPU.
#include <skimattn/sm100/ptx.cuh>

namespace probes {
using namespace skimattn;

constexpr int kImageBytes = 128 * 1024, kColumns = 512, kChunk = 32, kLanes = 128;

struct Shared {
  alignas(1024) uint8_t image[kImageBytes];
  alignas(16) uint64_t done;
  uint32_t address;
};

// One product. `a` is a descriptor whose start counts from the image, or a column of tensor memory.
struct Step {
  uint64_t a, b;
  uint32_t d, instruction, from_tensor_memory, accumulate;
};

// What a load or store of shape 16x32bx2 gives and takes, by way of 32x32b: into columns from 256 on, and from 384 on.
SKIM_DEVICE void move_halves(uint32_t address) {
  uint32_t bits[kChunk];
  float words[kChunk];
  ptx::tcgen05_ld_halves<kChunk, 96>(words, address);
  ptx::tcgen05_wait_ld<kChunk>(words);
  ptx::tcgen05_st<kChunk>(address + 256, words);
  ptx::tcgen05_ld<kChunk>(words, address + kChunk);
  ptx::tcgen05_wait_ld<kChunk>(words);
  for (int i = 0; i < kChunk; ++i) bits[i] = __builtin_bit_cast(uint32_t, words[i]);
  ptx::tcgen05_st_halves<kChunk, 96>(address + 384, bits);
  ptx::tcgen05_wait_st();
}

// params: custom_mask = images, page_table = tensor memory before [CTA][128][512], cu_seqlens_q = steps [CTA][len_q],
// cu_seqlens_k = how many steps each CTA has, -1 = it moves halves, out = tensor memory after.
template <class Element>
SKIM_DEVICE void run(const Params& p) {
  auto& s = *reinterpret_cast<Shared*>(ptx::dynamic_smem());
  const int thread = ptx::thread_index(), cta = ptx::block_index();
  if (thread == 0) {
    ptx::mbarrier_init(&s.done, 1);
    ptx::fence_mbarrier_init();
  }
  if (thread < kWarpThreads) {
    ptx::tcgen05_alloc<kColumns>(&s.address);
    ptx::tcgen05_relinquish_alloc_permit();
  }
  const auto* image = reinterpret_cast<const uint32_t*>(p.custom_mask) + static_cast<int64_t>(cta) * (kImageBytes / 4);
  for (int i = thread; i < kImageBytes / 4; i += kLanes) ptx::st_shared(s.image + 4 * i, ptx::ld_global(image + i));
  ptx::fence_proxy_async();
  ptx::tcgen05_fence_before_thread_sync();
  ptx::cta_sync();
  ptx::tcgen05_fence_after_thread_sync();  // of the allocation
  const uint32_t tensor = ptx::ld_shared(&s.address);
  const uint32_t lane0 = static_cast<uint32_t>(thread / kWarpThreads * kWarpThreads) << 16;
  const int64_t row = (static_cast<int64_t>(cta) * kLanes + thread) * kColumns;
  const auto* before = reinterpret_cast<const uint32_t*>(p.page_table) + row;
  for (int column = 0; column < kColumns; column += kChunk) {
    uint32_t words[kChunk];
    for (int i = 0; i < kChunk; ++i) words[i] = ptx::ld_global(before + column + i);
    ptx::tcgen05_st<kChunk>(tensor + lane0 + column, words);
  }
  ptx::tcgen05_wait_st();
  ptx::tcgen05_fence_before_thread_sync();
  ptx::cta_sync();
  if (thread == 0) {
    ptx::tcgen05_fence_after_thread_sync();
    const auto* steps = reinterpret_cast<const Step*>(p.cu_seqlens_q) + static_cast<int64_t>(cta) * p.len_q;
    const uint64_t start = ptx::smem_address(s.image) >> 4;
    for (int i = 0; i < ptx::ld_global(p.cu_seqlens_k + cta); ++i) {
      const Step& step = steps[i];
      const bool accumulate = step.accumulate != 0;
      if (step.from_tensor_memory != 0) {
        ptx::tcgen05_mma_ts<Element>(tensor + step.d, tensor + static_cast<uint32_t>(step.a), step.b + start,
                                     step.instruction, accumulate);
      } else {
        ptx::tcgen05_mma_ss<Element>(tensor + step.d, step.a + start, step.b + start, step.instruction, accumulate);
      }
    }
    ptx::tcgen05_commit(&s.done);
  }
  ptx::mbarrier_wait_parity(&s.done, 0);
  ptx::tcgen05_fence_after_thread_sync();
  if (ptx::ld_global(p.cu_seqlens_k + cta) < 0) move_halves(tensor + lane0);
  float* out = static_cast<float*>(p.out) + row;
  for (int column = 0; column < kColumns; column += kChunk) {
    float words[kChunk];
    ptx::tcgen05_ld<kChunk>(words, tensor + lane0 + column);
    ptx::tcgen05_wait_ld<kChunk>(words);
    for (int i = 0; i < kChunk; ++i) ptx::st_global(out + column + i, words[i]);
  }
  ptx::tcgen05_fence_before_thread_sync();
  ptx::cta_sync();
  ptx::tcgen05_fence_after_thread_sync();
  if (thread < kWarpThreads) ptx::tcgen05_dealloc<kColumns>(tensor);
}
}  // namespace probes
