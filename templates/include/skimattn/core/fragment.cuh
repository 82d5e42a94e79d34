// Where in the request the elements lie that one thread holds of a tile of scores. An architecture's layout
// (WgmmaFragment, LaneFragment) names the rows of a thread (kRows of them, kRowStep apart), and the row and the column
// of element i relative to the first.
#pragma once
#include <skimattn/core/platform.cuh>

namespace skimattn {

// Where one thread's fragment lies: its first row in the request, and its first column inside the tile.
template <class Layout_>
struct FragmentPlace {
  using Layout = Layout_;
  int row, column, batch, head, len_q, len_k, q_offset;
  float alibi;  // slope of this head, per raw score unit
  SKIM_DEVICE int row_of(int r) const { return row + Layout::kRowStep * r; }
  SKIM_DEVICE int head_of(int) const { return head; }
  SKIM_DEVICE float alibi_of(int) const { return alibi; }
  SKIM_DEVICE int diagonal(int r) const { return row_of(r) + len_k - len_q; }
  SKIM_DEVICE bool valid(int r) const { return row_of(r) < len_q; }
};

// The same where rows are packed, (query row, query head of one kv head) after the other: each has a head of its own.
template <class Layout_>
struct PackedPlace {
  using Layout = Layout_;
  int row[Layout::kRows], head[Layout::kRows];
  int column, batch, len_q, len_k, q_offset;
  float alibi[Layout::kRows];
  SKIM_DEVICE int row_of(int r) const { return row[r]; }
  SKIM_DEVICE int head_of(int r) const { return head[r]; }
  SKIM_DEVICE float alibi_of(int r) const { return alibi[r]; }
  SKIM_DEVICE int diagonal(int r) const { return row[r] + len_k - len_q; }
  SKIM_DEVICE bool valid(int r) const { return row[r] < len_q; }
};

}  // namespace skimattn
