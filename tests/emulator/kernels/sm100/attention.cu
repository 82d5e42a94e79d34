// Scores, probabilities over them, output: the way of an attention kernel, and the same without one of its steps.
namespace rules {

enum class Omit {
  kNothing,
  kWaitLoad,             // scores are overwritten before their load has ended
  kWaitLoadTold,         // scores are handed back before a load has ended
  kWaitStoreTold,        // probabilities are handed over before their store has ended
  kBefore,               // no fence::before_thread_sync
  kBeforeTold,           // one that comes after the barrier
  kAfterIssuer,          // no fence::after_thread_sync where products are issued
  kAfterMover,           // nor where scores are loaded
  kScoresBarrier,        // scores are loaded on somebody's word that they were asked for
  kScoresCommit,         // nothing says when they are done
  kCommitByOther,        // another thread commits
  kProbabilitiesBarrier  // the second product does not wait for its A
};

// Two rounds: scores S = Q K^T; P = bf16(S), over S; O (*2 in the second round) += P V. O goes to params.out.
template <Omit kOmit>
SKIM_DEVICE void attend_issuer(const Params& p, Shared& s, uint32_t scores, uint32_t o) {
  const Control& c = control(p);
  const uint64_t start = ptx::smem_address(s.image) >> 4;
  for (uint32_t round = 0; round < 2; ++round) {
    ptx::tcgen05_mma_ss<ElementBf16>(scores, c.step[0].a + start, c.step[0].b + start, c.instruction, false);
    if constexpr (kOmit == Omit::kCommitByOther) {
      ptx::mbarrier_arrive(&s.other);
    } else if constexpr (kOmit == Omit::kScoresCommit) {
      ptx::mbarrier_arrive(&s.full);
    } else {
      ptx::tcgen05_commit(&s.full);
    }
    if constexpr (kOmit != Omit::kProbabilitiesBarrier) ptx::mbarrier_wait_parity(&s.third, round);
    if constexpr (kOmit != Omit::kAfterIssuer) ptx::tcgen05_fence_after_thread_sync();
    ptx::tcgen05_mma_ts<ElementBf16>(o, scores + 32, c.step[1].b + start, c.second_instruction, round > 0);
    if (p.heads_in_l2 != 0) {  // the second round's scores only once the product has read P
      ptx::tcgen05_commit(&s.other);
      ptx::mbarrier_wait_parity(&s.other, round);
      ptx::tcgen05_fence_after_thread_sync();
    }
  }
  ptx::tcgen05_commit(&s.full);
}
template <Omit kOmit>
SKIM_DEVICE void attend_mover(const Params& p, Shared& s, uint32_t scores, uint32_t o) {
  constexpr bool kLateWait = kOmit == Omit::kWaitLoad;
  float d[kChunk], x[kChunk], y[kChunk], z[kChunk];
  uint32_t pairs[8];
  for (uint32_t round = 0; round < 2; ++round) {
    if constexpr (kOmit != Omit::kScoresBarrier) ptx::mbarrier_wait_parity(&s.full, round);
    if constexpr (kOmit != Omit::kAfterMover) ptx::tcgen05_fence_after_thread_sync();
    if (round > 0) {
      ptx::tcgen05_ld<kChunk>(d, o);
      ptx::tcgen05_wait_ld<kChunk>(d);
      for (float& value : d) value *= 2.0f;
      ptx::tcgen05_st<kChunk>(o, d);
    }
    ptx::tcgen05_ld<kChunk>(x, scores);
    ptx::tcgen05_wait_ld<kChunk>(x);
    ptx::tcgen05_ld<kChunk>(y, scores + kChunk);
    if constexpr (!kLateWait) ptx::tcgen05_wait_ld<kChunk>(y);
    for (int i = 0; i < 8; ++i) pairs[i] = ptx::pack(ElementBf16{}, x[2 * i], x[2 * i + 1]);
    ptx::tcgen05_st<8>(scores + 32, pairs);
    if constexpr (kLateWait) ptx::tcgen05_wait_ld<kChunk>(y);
    if constexpr (kOmit != Omit::kWaitStoreTold) ptx::tcgen05_wait_st();
    if constexpr (kOmit == Omit::kWaitLoadTold) ptx::tcgen05_ld<kChunk>(z, scores);
    if constexpr (kOmit != Omit::kBefore && kOmit != Omit::kBeforeTold) ptx::tcgen05_fence_before_thread_sync();
    ptx::mbarrier_arrive(&s.third);
    if constexpr (kOmit == Omit::kBeforeTold) ptx::tcgen05_fence_before_thread_sync();
    if constexpr (kOmit == Omit::kWaitStoreTold) ptx::tcgen05_wait_st();
    if constexpr (kOmit == Omit::kWaitLoadTold) ptx::tcgen05_wait_ld<kChunk>(z);
  }
  ptx::mbarrier_wait_parity(&s.full, 0);
  ptx::tcgen05_fence_after_thread_sync();
  take(o - lanes(), static_cast<float*>(p.out), kColumnsD, kChunk);
}
template <Omit kOmit>
SKIM_DEVICE void attend(const Params& p, Shared& s) {
  const uint32_t scores = prepare<128>(p, s), o = scores + 64;
  if (issuer()) attend_issuer<kOmit>(p, s, scores, o);
  if (mover()) attend_mover<kOmit>(p, s, scores + lanes(), o + lanes());
  if (kOmit == Omit::kCommitByOther && thread() == 160) {
    ptx::mbarrier_wait_parity(&s.other, 0);
    ptx::tcgen05_commit(&s.full);
  }
  finish<128>(scores);
}
KERNEL(attention) { attend<Omit::kNothing>(p, s); }
KERNEL(load_not_waited_for) { attend<Omit::kWaitLoad>(p, s); }
KERNEL(load_handed_over) { attend<Omit::kWaitLoadTold>(p, s); }
KERNEL(store_handed_over) { attend<Omit::kWaitStoreTold>(p, s); }
KERNEL(no_fence_before) { attend<Omit::kBefore>(p, s); }
KERNEL(fence_before_too_late) { attend<Omit::kBeforeTold>(p, s); }
KERNEL(no_fence_after_by_issuer) { attend<Omit::kAfterIssuer>(p, s); }
KERNEL(no_fence_after_by_mover) { attend<Omit::kAfterMover>(p, s); }
KERNEL(scores_without_barrier) { attend<Omit::kScoresBarrier>(p, s); }
KERNEL(scores_without_commit) { attend<Omit::kScoresCommit>(p, s); }
KERNEL(commit_by_another) { attend<Omit::kCommitByOther>(p, s); }
KERNEL(a_without_barrier) { attend<Omit::kProbabilitiesBarrier>(p, s); }

}  // namespace rules
