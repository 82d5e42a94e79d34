// What a thread holds of wgmma's accumulator.
#pragma once
#include <skimattn/core/fragment.cuh>

namespace skimattn::sm90 {

// Two rows 8 apart; columns in pairs, from 2 * (lane % 4) on.
struct WgmmaFragment {
  static constexpr int kRows = 2, kRowStep = 8;
  SKIM_DEVICE static constexpr int row_offset(int r) { return kRowStep * r; }
  // Of thread number `thread` of the warpgroup.
  SKIM_DEVICE static int first_row(int thread) { return thread / kWarpThreads * 16 + thread % kWarpThreads / 4; }
  SKIM_DEVICE static constexpr int row(int i) { return (i >> 1) & 1; }
  SKIM_DEVICE static constexpr int column(int i) { return (i >> 2) * 8 + (i & 1); }
};

}  // namespace skimattn::sm90
