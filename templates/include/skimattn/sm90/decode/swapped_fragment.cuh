// Where a thread's elements lie when decode's operands are swapped: keys, or columns of V, along the rows of wgmma's
// accumulator, and packed rows along its columns, of which there are 16 instead of 64.
#pragma once
#include <skimattn/sm90/fragment.cuh>

namespace skimattn::sm90 {

constexpr int kSwappedRows = 16;

// A thread has four of the packed rows: two neighbours, and those 8 further on.
struct SwappedRows {
  static constexpr int kRows = 4;
  SKIM_DEVICE static constexpr int row_offset(int r) { return r / 2 * 8 + r % 2; }
  SKIM_DEVICE static int first_row(int thread) { return thread % 4 * 2; }
};

// Of S^T in a product of 64 keys: two keys of each row, from key 16 * warp + lane / 4 on.
struct SwappedScores : SwappedRows {
  SKIM_DEVICE static constexpr int row(int i) { return i / 4 * 2 + i % 2; }
  SKIM_DEVICE static constexpr int column(int i) { return i / 2 % 2 * 8; }
};

// Of the output, in the order of rows and their columns: as many neighbouring columns as one word of V's bytes has (two
// where V has 64), and as many more 128 columns further on.
template <int kHeadDimV>
struct SwappedOutput : SwappedRows {
  static constexpr int kColumns = kHeadDimV / 32, kNeighbours = imin(kColumns, 4);
  SKIM_DEVICE static constexpr int row(int i) { return i / kColumns; }
  SKIM_DEVICE static constexpr int column(int i) { return i % kColumns / 4 * kPanelRowBytes + i % kColumns % 4; }
  SKIM_DEVICE static int first_column(int thread) {
    return (thread / kWarpThreads * 8 + thread % kWarpThreads / 4) * kNeighbours;
  }
  // Where in this order element i of O^T's accumulator number `part` lies: 64 columns, of which a thread has a pair.
  SKIM_DEVICE static constexpr int index(int part, int i) {
    return SwappedScores::row(i) * kColumns + part * 2 + i / 2 % 2;
  }
};

}  // namespace skimattn::sm90
