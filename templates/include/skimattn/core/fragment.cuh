// Which elements of a tile of scores one thread holds, and where in the request they lie. A layout names the rows of a
// thread (kRows of them, kRowStep apart), and the row and the column of element i relative to the first.
#pragma once
#include <skimattn/core/platform.cuh>

namespace skimattn {

// wgmma's accumulator: two rows 8 apart; columns in pairs, from 2 * (lane % 4) on.
struct WgmmaFragment {
  static constexpr int kRows = 2, kRowStep = 8;
  SKIM_DEVICE static constexpr int row(int i) { return (i >> 1) & 1; }
  SKIM_DEVICE static constexpr int column(int i) { return (i >> 2) * 8 + (i & 1); }
};

// A lane of tensor memory: one row, all its columns.
struct LaneFragment {
  static constexpr int kRows = 1, kRowStep = 0;
  SKIM_DEVICE static constexpr int row(int) { return 0; }
  SKIM_DEVICE static constexpr int column(int i) { return i; }
};

// Where one thread's fragment lies: its first row in the request, and its first column inside the tile.
template <class Layout_>
struct FragmentPlace {
  using Layout = Layout_;
  int row, column, batch, head, len_q, len_k, q_offset;
  float alibi;  // slope of this head, per raw score unit
  SKIM_DEVICE int row_of(int r) const { return row + Layout::kRowStep * r; }
  SKIM_DEVICE int diagonal(int r) const { return row_of(r) + len_k - len_q; }
  SKIM_DEVICE bool valid(int r) const { return row_of(r) < len_q; }
};

}  // namespace skimattn
