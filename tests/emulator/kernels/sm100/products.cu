// Products: their operands in tensor memory and shared memory, their commits.
namespace rules {

// ---- products

template <class Break>
SKIM_DEVICE void broken_product(const Params& p, Shared& s, Break broken) {
  const uint32_t address = prepare<128>(p, s);
  if (issuer()) broken(address);
  ptx::cta_sync();
}
SKIM_DEVICE void product(const Params& p, Shared& s, uint32_t d, bool accumulate = false) {
  const Control& c = control(p);
  const uint64_t start = ptx::smem_address(s.image) >> 4;
  ptx::tcgen05_mma_ss<ElementBf16>(d, c.step[0].a + start, c.step[0].b + start, c.instruction, accumulate);
}
SKIM_DEVICE void product_of_columns(const Params& p, Shared& s, uint32_t d, uint32_t a) {
  const Control& c = control(p);
  const uint64_t start = ptx::smem_address(s.image) >> 4;
  ptx::tcgen05_mma_ts<ElementBf16>(d, a, c.step[1].b + start, c.second_instruction, false);
}
KERNEL(d_outside) {
  broken_product(p, s, [&](uint32_t address) { product(p, s, address + 96); });
}
KERNEL(d_at_a_lane) {
  broken_product(p, s, [&](uint32_t address) { product(p, s, address + (32u << 16)); });
}
KERNEL(a_outside) {
  broken_product(p, s, [&](uint32_t address) { product_of_columns(p, s, address, address + 124); });
}
KERNEL(a_unwritten) {
  broken_product(p, s, [&](uint32_t address) { product_of_columns(p, s, address, address + 64); });
}
KERNEL(a_inside_d) {
  broken_product(p, s, [&](uint32_t address) { product_of_columns(p, s, address, address + 16); });
}
KERNEL(a_from_product) {
  broken_product(p, s, [&](uint32_t address) {
    product(p, s, address);
    ptx::tcgen05_commit(&s.full);
    product_of_columns(p, s, address + 64, address);
  });
}
KERNEL(accumulate_unwritten) {
  broken_product(p, s, [&](uint32_t address) { product(p, s, address, true); });
}
KERNEL(product_uncommitted) {
  broken_product(p, s, [&](uint32_t address) { product(p, s, address); });
}
KERNEL(commit_and_leave) {
  prepare<32>(p, s);
  if (issuer()) ptx::tcgen05_commit(&s.full);
}
KERNEL(commit_too_often) {
  broken_product(p, s, [&](uint32_t) {
    ptx::mbarrier_arrive_expect_tx(&s.full, 16);
    ptx::tcgen05_commit(&s.full);
    ptx::mbarrier_wait_parity(&s.full, 0);
  });
}
KERNEL(two_issuers) {
  const uint32_t address = prepare<128>(p, s);
  if (thread() >= 128 && thread() < 130) {
    product(p, s, address);
    ptx::tcgen05_commit(&s.full);
  }
}
KERNEL(five_issuers) {
  prepare<128>(p, s);
  if (thread() >= 128 && thread() < 133) ptx::tcgen05_commit(&s.full);
}

KERNEL(dealloc_in_flight) {
  const uint32_t address = prepare<128>(p, s);
  if (issuer()) {
    product(p, s, address);
    ptx::tcgen05_commit(&s.full);
  }
  finish<128>(address);
}

// ---- operands in shared memory

template <class Break>
SKIM_DEVICE void reuse(const Params& p, Shared& s, Break broken) {
  const uint32_t address = prepare<128>(p, s);
  if (issuer()) {
    product(p, s, address);
    ptx::tcgen05_commit(&s.full);
    ptx::mbarrier_arrive(&s.other);
  }
  if (thread() == 0) {
    ptx::mbarrier_wait_parity(&s.other, 0);
    broken();
  }
  ptx::mbarrier_wait_parity(&s.full, 0);
  finish<128>(address);
}
SKIM_DEVICE void load_image(const Params& p, Shared& s) {
  ptx::mbarrier_arrive_expect_tx(&s.other, 8192);
  ptx::tma_load(s.image, &p.tma_q, &s.other, 0, 0, 0, 0, 0);
}
KERNEL(operand_overwritten) {
  reuse(p, s, [&] { ptx::st_shared(s.image, 1); });
}
KERNEL(operand_overwritten_by_load) {
  reuse(p, s, [&] { load_image(p, s); });
}
KERNEL(operand_released) {  // right: by the commit's barrier
  reuse(p, s, [&] {
    ptx::mbarrier_wait_parity(&s.full, 0);
    load_image(p, s);
    ptx::mbarrier_wait_parity(&s.other, 1);
  });
}
// The commit passes on that the copy had landed, which thread 0 did not wait for, but not what the issuer read.
SKIM_DEVICE void passed_on(const Params& p, Shared& s, bool read_word) {
  const uint32_t address = prepare<128>(p, s);
  if (thread() == 192) load_image(p, s);
  if (issuer()) {
    ptx::mbarrier_wait_parity(&s.other, 0);
    ptx::tcgen05_fence_after_thread_sync();
    product(p, s, address);
    if (read_word) ptx::ld_shared(&s.words[0]);
    ptx::tcgen05_commit(&s.full);
  }
  if (thread() == 0) {
    ptx::mbarrier_wait_parity(&s.full, 0);
    if (read_word) ptx::st_shared(&s.words[0], 1);
    load_image(p, s);
    ptx::mbarrier_wait_parity(&s.other, 1);
  }
  if (thread() != 0) ptx::mbarrier_wait_parity(&s.full, 0);
  finish<128>(address);
}
KERNEL(landing_passed_on) { passed_on(p, s, false); }  // right
KERNEL(reading_not_passed_on) { passed_on(p, s, true); }
// What the first operand's bytes were written by, and what did not happen before the product.
template <class Fill>
SKIM_DEVICE void fill_then_multiply(const Params& p, Shared& s, Fill fill) {
  const uint32_t address = prepare<128>(p, s);
  fill();
  if (issuer()) {
    product(p, s, address);
    ptx::tcgen05_commit(&s.full);
  }
  ptx::mbarrier_wait_parity(&s.full, 0);
  finish<128>(address);
}
KERNEL(operand_unfenced) {
  fill_then_multiply(p, s, [&] {
    if (thread() == 0) ptx::st_shared(s.image, 0);
    ptx::cta_sync();
    ptx::tcgen05_fence_after_thread_sync();
  });
}
KERNEL(operand_fenced_after_barrier) {
  fill_then_multiply(p, s, [&] {
    if (thread() == 0) ptx::st_shared(s.image, 0);
    ptx::cta_sync();
    ptx::fence_proxy_async();
    ptx::tcgen05_fence_after_thread_sync();
  });
}
KERNEL(operand_without_fence_after) {
  fill_then_multiply(p, s, [&] {
    if (thread() == 0) ptx::st_shared(s.image, 0);
    ptx::fence_proxy_async();
    ptx::cta_sync();
  });
}
KERNEL(operand_in_flight) {
  fill_then_multiply(p, s, [&] {
    if (issuer()) load_image(p, s);
  });
}
KERNEL(operand_loaded_without_fence_after) {
  fill_then_multiply(p, s, [&] {
    if (!issuer()) return;
    load_image(p, s);
    ptx::mbarrier_wait_parity(&s.other, 0);
  });
}
KERNEL(operand_loaded) {  // right
  fill_then_multiply(p, s, [&] {
    if (!issuer()) return;
    load_image(p, s);
    ptx::mbarrier_wait_parity(&s.other, 0);
    ptx::tcgen05_fence_after_thread_sync();
  });
}

// ---- columns that a product still uses

KERNEL(d_overwritten_by_store) {
  const uint32_t address = prepare<128>(p, s);
  if (issuer()) {
    product(p, s, address);
    ptx::tcgen05_commit(&s.full);
    ptx::mbarrier_arrive(&s.other);
  }
  if (warp() == 0) {
    ptx::mbarrier_wait_parity(&s.other, 0);
    ptx::tcgen05_fence_after_thread_sync();
    store_one(address + 5);
  }
}
KERNEL(a_overwritten_by_store) {
  const uint32_t address = prepare<128>(p, s);
  const uint32_t a[8] = {};
  if (mover()) {
    ptx::tcgen05_st<8>(address + 64 + lanes(), a);
    ptx::tcgen05_wait_st();
  }
  ptx::tcgen05_fence_before_thread_sync();
  ptx::cta_sync();
  ptx::tcgen05_fence_after_thread_sync();
  if (issuer()) {
    product_of_columns(p, s, address, address + 64);
    ptx::tcgen05_commit(&s.full);
    ptx::mbarrier_arrive(&s.other);
  }
  if (warp() == 0) {
    ptx::mbarrier_wait_parity(&s.other, 0);
    ptx::tcgen05_fence_after_thread_sync();
    store_one(address + 64);
  }
}

}  // namespace rules
