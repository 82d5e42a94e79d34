// What a warpgroup does with its half of the output's columns once a leaf is done: it merges them with those of the
// leaves before, and the result of a request that is one part goes to the output at once.
#pragma once
#include <skimattn/core/output.cuh>
#include <skimattn/sm90/decode/place.cuh>

namespace skimattn::sm90 {

// How a row's columns are merged: what those of the leaves before count, and those of this leaf; and what turns the sum
// into the result.
struct RowMerge {
  float before, now, inverse;
};

// `kFirst` is the half's first column.
template <class Tr, int kFirst>
struct MlaEpilogue {
  using Place = PackedPlace<Layout>;
  static constexpr int kOut = Tr::kHeadDimV / 4;

  // Note: O of the leaves before waits in the part's place in the workspace, which is in L2: neither registers nor
  // shared memory have room for two of it. A part is a leaf or a twig, since there is one place.
  SKIM_DEVICE static void add(float (&o)[kOut], const RowMerge (&merge)[kThreadRows], bool is_first, bool is_result,
                              int thread, const Place& at, const DecodeItem& item, const Params& p) {
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      if (!at.valid(r)) continue;
      float* columns = part(r, thread, item, p) + kFirst + at.column / 2 * 4;
      if (is_first) {
        merge_columns(o, r, merge[r], [](int, float (&x)[4]) { x[0] = x[1] = x[2] = x[3] = 0.0f; });
      } else {
        merge_columns(o, r, merge[r],
                      [&](int block, float (&x)[4]) { ptx::ld_global_quad(columns + block * kMlaBlock, x); });
      }
      if (is_result) {
        store_result(o, r, merge[r].inverse, at, p);
      } else {
        store_columns(o, r, columns);
      }
    }
  }

  // A thread's row of the part.
  SKIM_DEVICE static float* part(int r, int thread, const DecodeItem& item, const Params& p) {
    const int row = thread / kWarpThreads * 16 + thread % kWarpThreads / 4 + Layout::kRowStep * r;
    return part_row<Tr>(item.base.batch, item.base.head, item.base.row0 / Tr::kGroupRows, item.part, row, p);
  }

 private:
  // Of each block of 16 columns a thread has four of a row: two, and two that lie eight on. In the workspace they lie
  // next to each other, as combine.cuh knows. This is the first of block `block`.
  static constexpr int kBlocks = kOut / 8;
  SKIM_DEVICE static constexpr int element(int block, int r) { return 8 * block + 2 * r; }

  // `load(block, x)`: what the leaves before left.
  template <class Load>
  SKIM_DEVICE static void merge_columns(float (&o)[kOut], int r, const RowMerge& merge, Load load) {
    constexpr int kAhead = 16;  // loads in flight
    const Merge both = {{}, merge.before, merge.now};
#pragma unroll
    for (int first = 0; first < kBlocks; first += kAhead) {
      float before[kAhead][4];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) load(first + i, before[i]);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        float* low = o + element(first + i, r);
        low[0] = merge_column(both, before[i][0], low[0]);
        low[1] = merge_column(both, before[i][1], low[1]);
        low[4] = merge_column(both, before[i][2], low[4]);
        low[5] = merge_column(both, before[i][3], low[5]);
      }
    }
  }

  SKIM_DEVICE static void store_columns(const float (&o)[kOut], int r, float* to) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const float* low = o + element(block, r);
      const float quad[4] = {low[0], low[1], low[4], low[5]};
      ptx::st_global_quad(to + block * kMlaBlock, quad);
    }
  }

  SKIM_DEVICE static void store_result(const float (&o)[kOut], int r, float inverse, const Place& at, const Params& p) {
    uint16_t* to = output_row(at, r, p) + kFirst + at.column;
#pragma unroll
    for (int i = 0; i < kOut; i += 2) {
      if (Layout::row(i) != r) continue;
      ptx::st_global(reinterpret_cast<uint32_t*>(to + Layout::column(i)),
                     pack_output<typename Tr::Out>(o[i], o[i + 1], inverse));
    }
  }
};

}  // namespace skimattn::sm90
