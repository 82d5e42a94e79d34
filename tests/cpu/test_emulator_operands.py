"""The emulator's walk from descriptors to shared memory as wgmma uses it, number formats, and CTAs of 512 threads.

The walk is the one of tcgen05: what a GPU with wgmma confirms of one layout (tests/gpu) holds for the other.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimattn.codegen.parameter_block import aligned_block

from tests.emulator import EmulatorError, compile_source
from tests.emulator.operands import SWIZZLES, Stored, numbers, store
from tests.emulator.rules import Bench, names, rules

M = N = K = 64


def run(a: Stored, b: Stored, *, a_in_registers: bool) -> np.ndarray:
    image = np.zeros(16384, np.uint8)
    image[: a.image.size], image[8192 : 8192 + b.image.size] = a.image, b.image
    steps = np.array([[a.sm90(i), b.sm90(i, 8192)] for i in range(4)], np.uint64)
    out = np.zeros((M, N), np.float32)
    block, owner = aligned_block()
    block.batch, block.out, block.len_q = names().index("product_of_layout"), out.ctypes.data, int(a_in_registers)
    block.custom_mask, block.page_table = image.ctypes.data, steps.ctypes.data
    rules().launch(block, 1, 256, 17408)
    del owner
    return out


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("swizzle", SWIZZLES)
def test_wgmma_of_every_layout(swizzle: int, interleaved: bool) -> None:
    (a, a_bits), (b, b_bits) = numbers(1), numbers(2)
    a_stored = store(a_bits, mn_major=False, swizzle=swizzle, interleaved=interleaved)
    b_stored = store(b_bits, mn_major=False, swizzle=swizzle, interleaved=interleaved)
    np.testing.assert_array_equal(run(a_stored, b_stored, a_in_registers=False), a @ b.T)
    b_stored = store(b_bits, mn_major=True, swizzle=swizzle, interleaved=interleaved)
    differences = np.arange(64.0)[:, None] - np.arange(64.0)
    np.testing.assert_array_equal(run(a_stored, b_stored, a_in_registers=True), differences @ b.T)


@pytest.mark.parametrize("swizzle", SWIZZLES)
def test_wgmma_with_the_wrong_layout_is_wrong(swizzle: int) -> None:
    (a, a_bits), (b, b_bits) = numbers(1), numbers(2)
    right = {other: store(a_bits, mn_major=False, swizzle=other) for other in SWIZZLES}
    for other in SWIZZLES:
        if other == swizzle or (swizzle == 0) != (other == 0):
            continue
        mixed = Stored(right[other].image, swizzle, right[swizzle].leading, right[swizzle].stride, right[swizzle].steps)
        b_stored = store(b_bits, mn_major=False, swizzle=128)
        assert not np.array_equal(run(mixed, b_stored, a_in_registers=False), a @ b.T)


def bytes_of(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """64 x 128 numbers that e4m3 holds, small enough for exact sums: as float64, and their bits."""
    codes = np.random.default_rng(seed).integers(0, 256, (64, 128)).astype(np.uint8)
    codes = np.where((codes & 0x78) > 0x48, codes & 0xBF, codes).astype(np.uint8)  # at most 7.5; no NaN
    values = torch.from_numpy(codes).view(torch.float8_e4m3fn).double().numpy()
    small = np.abs(values) < 0.5  # sums of more bits than a float has
    return np.where(small, 0.0, values), np.where(small, 0, codes).astype(np.uint8)


def a_words(bits: np.ndarray) -> np.ndarray:
    """A [64, 128] as each thread has it: uint32 [thread, step, 4].

    PTX ISA, fragments of .e4m3 for m64nNk32: element i of a thread lies in row groupID, or groupID + 8 where i is 4 to
    7 or 12 to 15, and in column 4 * threadID_in_group + i % 4, + 16 where i >= 8.
    """
    words = np.zeros((128, 4, 16), np.uint8)
    for thread in range(128):
        warp, group, within = thread // 32, thread % 32 // 4, thread % 4
        for step in range(4):
            for i in range(16):
                row = 16 * warp + group + (8 if i in (4, 5, 6, 7, 12, 13, 14, 15) else 0)
                words[thread, step, i] = bits[row, 32 * step + 4 * within + i % 4 + (16 if i >= 8 else 0)]
    return words.view(np.uint32)


def run_bytes(a: Stored, b: Stored, words: np.ndarray | None) -> np.ndarray:
    image = np.zeros(16384, np.uint8)
    image[: a.image.size], image[8192 : 8192 + b.image.size] = a.image, b.image
    steps = np.array([[a.sm90(i), b.sm90(i, 8192)] for i in range(4)], np.uint64)
    out = np.zeros((M, N), np.float32)
    block, owner = aligned_block()
    block.batch, block.out, block.len_q = names().index("product_of_bytes"), out.ctypes.data, int(words is not None)
    block.custom_mask, block.page_table = image.ctypes.data, steps.ctypes.data
    block.sinks = 0 if words is None else words.ctypes.data
    rules().launch(block, 1, 256, 17408)
    del owner
    return out


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("swizzle", SWIZZLES)
def test_wgmma_of_bytes(swizzle: int, interleaved: bool) -> None:
    (a, a_bits), (b, b_bits) = bytes_of(3), bytes_of(4)
    a_stored = store(a_bits, mn_major=False, swizzle=swizzle, interleaved=interleaved)
    b_stored = store(b_bits, mn_major=False, swizzle=swizzle, interleaved=interleaved)
    np.testing.assert_array_equal(run_bytes(a_stored, b_stored, None), a @ b.T)
    np.testing.assert_array_equal(run_bytes(a_stored, b_stored, a_words(a_bits)), a @ b.T)


def test_wgmma_of_bytes_wants_its_own_fragment() -> None:
    (a, a_bits), (b, b_bits) = bytes_of(3), bytes_of(4)
    stored = (store(a_bits, mn_major=False, swizzle=128), store(b_bits, mn_major=False, swizzle=128))
    swapped = np.ascontiguousarray(a_words(a_bits)[:, :, [0, 2, 1, 3]])
    assert not np.array_equal(run_bytes(*stored, swapped), a @ b.T)


_ARITHMETIC = """
#include <skimattn/sm100/ptx.cuh>
extern "C" void arithmetic(skimattn::Params p) {
  namespace ptx = skimattn::ptx;
  if (ptx::thread_index() != 0) return;
  const auto* in = static_cast<const float*>(p.sinks);
  auto* out = static_cast<uint32_t*>(p.out);
  auto* floats = static_cast<float*>(p.out) + p.len_q;
  for (int i = 0; i < p.len_q; ++i) {
    out[i] = ptx::pack(skimattn::ElementE4m3{}, in[i], -in[i], 0.0f, 1.0f);
  }
  const ptx::Float2 a = {in[0], in[1]}, b = {in[2], in[3]}, c = {in[4], in[5]};
  const ptx::Float2 both[2] = {ptx::fma2(a, b, c), ptx::add2(a, b)};
  for (int i = 0; i < 2; ++i) floats[2 * i] = both[i].x, floats[2 * i + 1] = both[i].y;
  const float nan = __builtin_nanf("");
  floats[4] = ptx::max3_nan(1.0f, 3.0f, 2.0f);
  floats[5] = ptx::max3_nan(nan, 3.0f, 2.0f);
  floats[6] = ptx::max3_nan(1.0f, nan, 2.0f);
  floats[7] = ptx::max3_nan(1.0f, 3.0f, nan);
}
"""


def test_arithmetic_of_sm100() -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 20000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    halfway = (codes[1:] + codes[:-1]) / 2  # ties go to the even one
    near = np.concatenate([np.nextafter(halfway, np.float32(0)), np.nextafter(halfway, np.float32(1e9))])
    small = np.random.default_rng(1).normal(0, 100, 20000).astype(np.float32)
    specials = [0.0, -0.0, 448, 449, 463.99, 464, 464.01, 480, 1e9, np.inf, np.nan, 2.0**-9, 2.0**-10]
    first = np.array([1.5, -2.25, 3.0, 1e-3, 7.0, 1e30], np.float32)
    values = np.concatenate([first, codes, halfway, near, small, bits, np.array(specials, np.float32)])
    out = np.zeros(len(values) + 8, np.uint32)
    block, owner = aligned_block()
    block.sinks, block.out, block.len_q = values.ctypes.data, out.ctypes.data, len(values)
    compile_source("arithmetic", _ARITHMETIC).launch(block, 1, 128, 1024)
    del owner
    clamped = torch.from_numpy(np.clip(values, -448, 448)).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    packed = out[: len(values)].view(np.uint8).reshape(-1, 4)
    number = ~np.isnan(values)
    np.testing.assert_array_equal(packed[number, 0], clamped[number])
    np.testing.assert_array_equal(packed[number, 1], clamped[number] ^ 0x80)
    assert (packed[~number, :2] & 0x7F == 0x7F).all()
    assert (packed[:, 2] == 0).all() and (packed[:, 3] == 0x38).all()
    floats = out[len(values) :].view(np.float32)
    x, y, z = (values[i : i + 2].astype(np.float64) for i in (0, 2, 4))
    np.testing.assert_array_equal(floats[:4], np.concatenate([x * y + z, x + y]).astype(np.float32))
    assert floats[4] == 3 and np.isnan(floats[5:]).all()


_REGISTERS = """
#include <skimattn/ptx.cuh>
extern "C" void registers(skimattn::Params p) {
  namespace ptx = skimattn::ptx;
  const int group = ptx::thread_index() / 128;
  if (group < 2) ptx::setmaxnreg_inc<192>();
  if (group == 2) ptx::setmaxnreg_dec<80>();
  if (group == 3 && p.len_q == 0) ptx::setmaxnreg_dec<48>();
  if (group == 3 && p.len_q == 1) ptx::setmaxnreg_dec<56>();
}
"""


def test_registers_of_four_warpgroups() -> None:
    kernel = compile_source("registers", _REGISTERS)
    block, owner = aligned_block()
    kernel.launch(block, 2, 512, 1024)
    block.len_q = 1
    with pytest.raises(EmulatorError, match=r"register: .* want 66560 registers, expected at most the 65536 "):
        kernel.launch(block, 1, 512, 1024)
    block.len_q = 2  # the fourth keeps its 128
    with pytest.raises(EmulatorError, match=r"register: .* want 75776 registers"):
        kernel.launch(block, 1, 512, 1024)
    Bench().run("registers")
    del owner
