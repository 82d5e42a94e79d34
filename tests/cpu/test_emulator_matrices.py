"""The emulator's stmatrix, and products of 64 x 16: what decode with swapped operands rests on."""

from __future__ import annotations

import numpy as np
import pytest
from skimattn.codegen.parameter_block import aligned_block

from tests.emulator import EmulatorError, compile_source
from tests.emulator.operands import numbers, store

_STORE = """
#include <skimattn/sm90/ptx.cuh>
extern "C" void matrices(skimattn::Params p) {
  namespace ptx = skimattn::ptx;
  const int thread = ptx::thread_index(), lane = thread % 32;
  if (thread >= 32 || lane >= p.len_k) return;
  const auto* words = reinterpret_cast<const uint32_t*>(p.custom_mask) + 4 * lane;
  const int place = reinterpret_cast<const int32_t*>(p.page_table)[lane];
  ptx::stmatrix_trans(ptx::dynamic_smem() + place * 16, words[0], words[1], words[2], words[3]);
  ptx::warp_sync();
  for (int i = 0; i < 4; ++i) {
    const uint32_t word = ptx::ld_shared(ptx::dynamic_smem() + (lane * 4 + i) * 4);
    ptx::st_global(static_cast<uint32_t*>(p.out) + lane * 4 + i, word);
  }
}
"""


def stored(lanes: int = 32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a warp stores of four random matrices [4, 8, 8], and where each of 32 rows of 16 bytes was to go."""
    random = np.random.default_rng(0)
    matrices = random.integers(0, 1 << 16, (4, 8, 8)).astype(np.uint16)
    places = random.permutation(32).astype(np.int32)
    # PTX ISA, "stmatrix": thread i holds of each matrix two elements of row i / 4, from column 2 * (i % 4) on, the
    # lower half of the word first; threads 8 m to 8 m + 7 hold the addresses of matrix m's rows; .trans exchanges rows
    # and columns.
    words = np.zeros((32, 4), np.uint32)
    for thread in range(32):
        for m in range(4):
            low, high = matrices[m, thread // 4, 2 * (thread % 4) : 2 * (thread % 4) + 2].astype(np.uint32)
            words[thread, m] = low | high << 16
    out = np.zeros((32, 8), np.uint16)
    block, owner = aligned_block()
    block.custom_mask, block.page_table, block.out = words.ctypes.data, places.ctypes.data, out.ctypes.data
    block.len_k = lanes
    compile_source("matrices", _STORE).launch(block, 1, 128, 1024)
    del owner
    return matrices, places, out


def test_matrices_are_stored_transposed() -> None:
    matrices, places, out = stored()
    for m in range(4):
        for column in range(8):
            np.testing.assert_array_equal(out[places[8 * m + column]], matrices[m, :, column])


def test_matrices_are_stored_by_a_whole_warp() -> None:
    with pytest.raises(EmulatorError, match=r"barrier: .*stmatrix: expected all lanes of the warp"):
        stored(31)


_PRODUCT = """
#include <skimattn/sm90/ptx.cuh>
#include <skimattn/sm90/descriptor.cuh>
extern "C" void product(skimattn::Params p) {
  namespace ptx = skimattn::ptx;
  const int thread = ptx::thread_index();
  const auto* image = reinterpret_cast<const uint32_t*>(p.custom_mask);
  for (int at = thread; at < 512; at += 128) ptx::st_shared(ptx::dynamic_smem() + at * 4, image[at]);
  ptx::fence_proxy_async();
  ptx::cta_sync();
  const auto* a = reinterpret_cast<const uint32_t*>(p.sinks) + thread * 16;
  const uint32_t words[4][4] = {{a[0], a[1], a[2], a[3]}, {a[4], a[5], a[6], a[7]}, {a[8], a[9], a[10], a[11]},
                                {a[12], a[13], a[14], a[15]}};
  const uint64_t b = skimattn::sm90::k_major(ptx::dynamic_smem());
  float d[8] = {};
  ptx::wgmma_fence();
  for (int i = 0; i < 4; ++i) {
    ptx::Wgmma<skimattn::ElementBf16, 16>::rs_k_major(d, words[i], skimattn::sm90::advance(b, i * 32), i > 0);
  }
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  for (int i = 0; i < 8; ++i) ptx::st_global(static_cast<float*>(p.out) + thread * 8 + i, d[i]);
}
"""


def test_product_of_64_by_16() -> None:
    """Element i of a thread: row 16 * warp + groupID + 8 * (i / 2 % 2), column 8 * (i / 4) + 2 * inGroup + i % 2."""
    (a, a_bits), (b, b_bits) = numbers(5), numbers(6)
    image = store(b_bits[:16], mn_major=False, swizzle=128).image
    words = np.zeros((128, 4, 8), np.uint16)
    for thread in range(128):
        row, column = thread // 32 * 16 + thread % 32 // 4, thread % 4 * 2
        for step in range(4):
            for i in range(8):
                k = 16 * step + column + i % 2 + (8 if i >= 4 else 0)
                words[thread, step, i] = a_bits[row + (8 if i in (2, 3, 6, 7) else 0), k]
    out = np.zeros((128, 8), np.float32)
    block, owner = aligned_block()
    block.custom_mask, block.sinks, block.out = image.ctypes.data, words.ctypes.data, out.ctypes.data
    compile_source("product", _PRODUCT).launch(block, 1, 128, 2048)
    del owner
    whole = a @ b[:16].T
    for thread in range(128):
        row, column = thread // 32 * 16 + thread % 32 // 4, thread % 4 * 2
        wanted = [whole[row + 8 * (i // 2 % 2), column + 8 * (i // 4) + i % 2] for i in range(8)]
        np.testing.assert_array_equal(out[thread], wanted)
