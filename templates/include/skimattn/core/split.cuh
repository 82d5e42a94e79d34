// How the keys of a decoded request are split, as codegen/tiles/split.py says: leaves, whose state starts anew, and
// branches of kBranchLeaves of them. Functions of the request alone, so its bits do not depend on who computes what.
#pragma once
#include <skimattn/core/tile_range.cuh>

namespace skimattn {

// log2 of the tiles of a leaf, and the request's leaves [first, last), counted from key 0 on; at least one, which may
// see no key.
struct Leaves {
  int shift, first, last;
};

template <class Tr>
SKIM_DEVICE Leaves leaves_of(int len_q, int len_k, const Params& p) {
  const TileRange range = tile_range<Tr::kMask, Tr::kTileN>(0, len_q, len_q, len_k, p);
  Leaves leaves = {Tr::kLeafShift, 0, 1};
  while (range.last - range.first > Tr::kMaxLeaves << leaves.shift) ++leaves.shift;
  leaves.first = range.first >> leaves.shift;
  leaves.last = imax((range.last + (1 << leaves.shift) - 1) >> leaves.shift, leaves.first + 1);
  return leaves;
}

// What one work item computes: 2^part_shift leaves, counted from key 0 on. Parts count from the request's first.
SKIM_DEVICE int parts_of(const Leaves& leaves, const Params& p) {
  return ((leaves.last - 1) >> p.part_shift) - (leaves.first >> p.part_shift) + 1;
}
// The leaves of one part.
SKIM_DEVICE Span leaves_of_part(const Leaves& leaves, int part, const Params& p) {
  const int first = ((leaves.first >> p.part_shift) + part) << p.part_shift;
  return {imax(leaves.first, first), imin(leaves.last, first + (1 << p.part_shift))};
}

// The state of a row over some of its keys: what its exponentials are measured from (in log2), their sum, and the
// output's columns, not normalised. The neutral one is {-inf, 0, 0}.
struct RowScale {
  float max, sum;
};
// How much two states of a row count when they are merged, and what comes out but for the columns.
struct Merge {
  RowScale merged;
  float first, second;
};
SKIM_DEVICE Merge merge_of(const RowScale& a, const RowScale& b) {
  const float max = ptx::max_nan(a.max, b.max), base = max == -kInf ? 0.0f : max;
  const float first = ptx::ex2(a.max - base), second = ptx::ex2(b.max - base);
  return {{max, fmaf(a.sum, first, b.sum * second)}, first, second};
}
SKIM_DEVICE float merge_column(const Merge& merge, float a, float b) { return fmaf(a, merge.first, b * merge.second); }

// A part's row in the workspace: the columns, then the scale, padded to whole 16 bytes. MLA's columns lie in blocks of
// 16, in the order in which a thread of wgmma has them: 0 1 8 9, 2 3 10 11, 4 5 12 13, 6 7 14 15.
constexpr int kMlaBlock = 16;
template <class Tr>
inline constexpr bool kMlaColumns = Tr::kHeadDimV == 512;
// Where a pair of columns of such a block lies, the first of which is the even number `column`.
SKIM_DEVICE constexpr int mla_place(int column) { return column % 8 * 2 + column / 8 * 2; }
template <class Tr>
inline constexpr int kPartRowFloats = Tr::kHeadDimV + 4;

template <class Tr>
SKIM_DEVICE float* part_row(int batch, int kv_head, int group, int part, int row, const Params& p) {
  const int64_t outer = (static_cast<int64_t>(batch - p.first_request) * p.heads_kv + kv_head) * p.groups + group;
  return p.partial + ((outer * p.parts + part) * p.part_rows + row) * kPartRowFloats<Tr>;
}
}  // namespace skimattn
