// Allocation, and what a warp may do with tensor memory.
namespace rules {

// ---- allocation

SKIM_DEVICE void load_one(uint32_t address) {
  float d[1];
  ptx::tcgen05_ld<1>(d, address);
  ptx::tcgen05_wait_ld<1>(d);
}
SKIM_DEVICE void store_one(uint32_t address) {
  const uint32_t d[1] = {};
  ptx::tcgen05_st<1>(address, d);
}
KERNEL(alloc_columns) {
  if (warp() == 0) ptx::tcgen05_alloc<48>(&s.address);
}
KERNEL(alloc_after_relinquish) {
  if (warp() == 1) ptx::tcgen05_relinquish_alloc_permit();
  ptx::cta_sync();
  if (warp() == 0) ptx::tcgen05_alloc<32>(&s.address);
}
KERNEL(alloc_grows) {
  if (warp() != 0) return;
  ptx::tcgen05_alloc<32>(&s.address);
  ptx::tcgen05_alloc<64>(&s.address);
}
KERNEL(alloc_too_much) {
  if (warp() != 0) return;
  ptx::tcgen05_alloc<512>(&s.address);
  ptx::tcgen05_alloc<32>(&s.address);
}
KERNEL(alloc_by_one_lane) {
  if (thread() == 0) ptx::tcgen05_alloc<32>(&s.address);
}
KERNEL(alloc_and_leave) {
  if (warp() == 0) ptx::tcgen05_alloc<32>(&s.address);
}
KERNEL(alloc_twice) {  // right: two allocations of one warp, both given back
  if (warp() != 0) return;
  ptx::tcgen05_alloc<64>(&s.words[0]);
  ptx::tcgen05_alloc<32>(&s.words[1]);
  const uint32_t first = ptx::ld_shared(&s.words[0]), second = ptx::ld_shared(&s.words[1]);
  ptx::tcgen05_dealloc<32>(second);
  ptx::tcgen05_dealloc<64>(first);
  if (thread() == 0) ptx::st_global(static_cast<float*>(p.out), static_cast<float>(first / 32 * 100 + second / 32));
}
KERNEL(alloc_address_raced) {
  if (warp() == 0) ptx::tcgen05_alloc<32>(&s.address);
  if (warp() == 1) ptx::ld_shared(&s.address);
}
// The address is known, the allocation is not: without a barrier, and without a fence.
KERNEL(use_before_barrier) {
  if (warp() == 4) ptx::tcgen05_alloc<512>(&s.address);
  ptx::shfl(0, 0);
  if (warp() == 5) store_one(lanes());
}
KERNEL(use_without_fence) {
  if (warp() == 4) ptx::tcgen05_alloc<512>(&s.address);
  ptx::cta_sync();
  if (warp() == 5) store_one(lanes());
}
KERNEL(dealloc_by_another) {
  const uint32_t address = prepare<32>(p, s);
  if (warp() == 1) ptx::tcgen05_dealloc<32>(address);
}
KERNEL(dealloc_part) {
  const uint32_t address = prepare<64>(p, s);
  if (warp() == 0) ptx::tcgen05_dealloc<32>(address);
}
KERNEL(dealloc_raced) {
  const uint32_t address = prepare<128>(p, s);
  const float x[1] = {1.0f};
  if (mover()) ptx::tcgen05_st<1>(address + lanes(), x);
  if (mover()) ptx::tcgen05_wait_st();
  if (warp() == 0) ptx::tcgen05_dealloc<128>(address);
}

// ---- what a warp, or a product, may touch

KERNEL(lanes_of_another) {
  const uint32_t address = prepare<32>(p, s);
  if (warp() == 1) store_one(address);
}
KERNEL(columns_outside) {
  const uint32_t address = prepare<32>(p, s);
  const uint32_t d[2] = {};
  if (warp() == 1) ptx::tcgen05_st<2>(address + lanes() + 31, d);
}
KERNEL(no_allocation) {
  if (warp() == 1) store_one(lanes());
}
KERNEL(address_differs) {
  const uint32_t address = prepare<32>(p, s);
  if (warp() == 0) store_one(address + (thread() == 3));
}
KERNEL(load_unwritten) {
  const uint32_t address = prepare<32>(p, s);
  if (warp() == 0) load_one(address);
}
KERNEL(store_and_leave) {
  const uint32_t address = prepare<32>(p, s);
  if (warp() == 0) store_one(address);
}
KERNEL(load_after_store) {
  const uint32_t address = prepare<32>(p, s);
  if (warp() != 0) return;
  store_one(address);
  load_one(address);
}
KERNEL(store_after_store) {
  const uint32_t address = prepare<32>(p, s);
  if (warp() != 0) return;
  store_one(address);
  store_one(address);
}
// Two loads; the wait names the registers of one.
SKIM_DEVICE void load_two(uint32_t address, float (&d)[2], bool same) {
  store_one(address);
  ptx::tcgen05_wait_st();
  ptx::tcgen05_ld<1>(d, address);
  ptx::tcgen05_ld<1>(same ? d : d + 1, address);
}
KERNEL(wait_names_others) {
  const uint32_t address = prepare<32>(p, s);
  float d[2];
  if (warp() != 0) return;
  load_two(address, d, false);
  ptx::tcgen05_wait_ld<1>(d);
}
KERNEL(registers_twice) {
  const uint32_t address = prepare<32>(p, s);
  float d[2];
  if (warp() == 0) load_two(address, d, true);
}
KERNEL(registers_written) {
  const uint32_t address = prepare<32>(p, s);
  float d[2];
  if (warp() != 0) return;
  load_two(address, d, false);
  if (thread() == 5) d[1] = 3.0f;
  ptx::tcgen05_wait_ld<2>(d);
}
KERNEL(registers_used_early) {  // what comes of it is NaN
  const uint32_t address = prepare<32>(p, s);
  float d[2];
  if (warp() == 0) {
    load_two(address, d, false);
    ptx::st_global(static_cast<float*>(p.out) + thread(), d[0] + 1.0f);
    ptx::tcgen05_wait_ld<2>(d);
  }
  finish<32>(address);
}

}  // namespace rules
