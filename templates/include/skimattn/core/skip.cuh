// The skip rule (BLASST, arXiv 2512.12087), in log2: a row agrees to drop a tile when
// exp(tile_max - running_max) < threshold; a tile is dropped when every valid row of its group agrees.
#pragma once
#include <skimattn/core/platform.cuh>
#include <skimattn/params.cuh>

namespace skimattn {

// log2 of the threshold of one request and head: -inf (never skip) for 0, negative numbers and NaN, and at most 0,
// so that a tile that raises the maximum is never dropped.
SKIM_DEVICE float log2_threshold(const Params& p, int batch, int head) {
  const float threshold =
      p.threshold == nullptr
          ? p.threshold_value
          : ptx::ld_global(p.threshold + batch * p.threshold_stride_batch + head * p.threshold_stride_head);
  if (!(threshold > 0.0f)) return -kInf;
  return threshold < 1.0f ? log2f(threshold) : 0.0f;
}

// Whether scores up to `max` give a row no reason to keep the tile. In raw scores; `scale_log2` turns them into log2
// units. max = -inf (no key seen) agrees unless skipping is off; a NaN anywhere makes the comparison false: keep.
// It may be asked of any part of a row: the row agrees when all its parts do.
SKIM_DEVICE bool row_can_skip(float max, float running_max, float scale_log2, float limit) {
  const bool sees_nothing = (max == -kInf) & (limit != -kInf);
  return sees_nothing | ((max - running_max) * scale_log2 < limit);
}

}  // namespace skimattn
