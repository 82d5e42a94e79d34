"""The independent encoder of SM100's descriptors: golden values, ranges, and the walk through shared memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.helpers.descriptors import Product, instruction_descriptor, shared_descriptor, sm90_descriptor
from tests.helpers.placement import Operand, addresses, gather, swizzled

KEYS = Operand(k_major=True, swizzle=128, element_bytes=2, leading=16, stride=1024)
VALUES = Operand(k_major=False, swizzle=128, element_bytes=2, leading=16384, stride=1024)
SCORES = Product("bf16", "bf16", 128, 128)

INSTRUCTIONS = {
    # From the notes, as CUTLASS and trtllm-gen have it: F32 result, BF16 twice, N 128, M 128.
    0x08200490: SCORES,
    0x08210490: replace(SCORES, b_mn_major=True),
    # By hand, bit by bit: 1 << 4 | types << 7 | types << 10 | majors << 15 | N / 8 << 17 | M / 16 << 24.
    0x08200010: replace(SCORES, a="fp16", b="fp16"),  # and e4m3, whose code is 0 too
    0x08210010: replace(SCORES, a="e4m3", b="e4m3", b_mn_major=True),
    0x08100490: replace(SCORES, n=64),
    0x08400490: replace(SCORES, n=256),
    0x08410490: replace(SCORES, n=256, b_mn_major=True),
    0x04200490: replace(SCORES, m=64),
    0x04020490: replace(SCORES, m=64, n=8),
    0x08208490: replace(SCORES, a_mn_major=True),
    0x08200480: replace(SCORES, result="fp16"),
    0x08200410: replace(SCORES, a="e4m3", b="e5m2"),
}


@pytest.mark.parametrize("word", INSTRUCTIONS, ids=hex)
def test_instruction_descriptors(word: int) -> None:
    assert instruction_descriptor(INSTRUCTIONS[word]) == word


def test_shared_descriptors_of_other_codebases() -> None:
    assert shared_descriptor(KEYS, 0) >> 32 == 0x40004040  # 128-byte swizzle, 1024 bytes between groups of 8 rows
    half = replace(KEYS, swizzle=64, stride=512)
    assert shared_descriptor(half, 0) >> 32 == 0x80004020
    assert shared_descriptor(replace(VALUES, leading=4096), 0) >> 16 & 0xFFFF == 0x0100
    assert shared_descriptor(VALUES, 0x2C400) & 0xFFFF == 0x2C40
    assert shared_descriptor(replace(KEYS, swizzle=32, stride=256), 0) >> 32 == 0xC0004010
    assert shared_descriptor(replace(KEYS, swizzle=0, leading=128, stride=256), 0) == 0x0000401000080000


def test_sm90_and_sm100_differ_in_version_and_swizzle_code_only() -> None:
    for swizzle, code in ((0, 0), (128, 1), (64, 2), (32, 3)):
        operand = replace(KEYS, swizzle=swizzle)
        old, new = sm90_descriptor(operand, 4096, 3), shared_descriptor(operand, 4096, 3)
        assert old >> 62 == code and old >> 46 & 7 == 0 and new >> 46 & 7 == 1
        assert (old ^ new) & ((1 << 46) - 1 | 0xFFF << 49) == 0


@pytest.mark.parametrize(
    ("operand", "address", "base", "message"),
    [
        (KEYS, 8, 0, r"address: expected a multiple of 16 bytes \(got 8\)"),
        (KEYS, 1 << 18, 0, r"address: expected 0 to 262128 bytes \(got 262144\)"),
        (KEYS, -16, 0, r"address: expected 0 to"),
        (replace(KEYS, leading=1 << 18), 0, 0, r"leading byte offset: expected 0 to 262128"),
        (replace(KEYS, stride=24), 0, 0, r"stride byte offset: expected a multiple of 16"),
        (KEYS, 0, 8, r"base offset: expected 0 to 7 \(got 8\)"),
    ],
)
def test_shared_descriptor_fields_are_checked(operand: Operand, address: int, base: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shared_descriptor(operand, address, base)
    with pytest.raises(ValueError, match="swizzle: expected"):
        replace(operand, swizzle=16)


@pytest.mark.parametrize(
    ("product", "message"),
    [
        (replace(SCORES, m=96), r"M: expected 64 or 128 \(got 96\)"),
        (replace(SCORES, m=256), r"M: expected 64 or 128"),
        (replace(SCORES, n=24), r"N: expected a multiple of 16 \(got 24\)"),
        (replace(SCORES, n=272), r"N: expected 16 to 256 \(got 272\)"),
        (replace(SCORES, n=0), r"N: expected 16 to 256"),
        (replace(SCORES, m=64, n=12), r"N: expected a multiple of 8"),
        (replace(SCORES, a="e4m3"), r"type of B: expected one of e4m3"),
        (replace(SCORES, b="e4m3"), r"type of B: expected one of fp16"),
        (replace(SCORES, result="bf16"), r"type of D: expected one of"),
        (Product("e4m3", "e4m3", 128, 128, result="fp16"), r"type of D: expected fp32 for 8-bit"),
        (Product("e4m3", "e4m3", 64, 8, b_mn_major=True), r"N: expected a multiple of 16 \(got 8\)"),
    ],
)
def test_instruction_fields_are_checked(product: Product, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        instruction_descriptor(product)


def test_every_field_of_an_instruction_has_bits_of_its_own() -> None:
    """Changing one thing changes the bits of its field and no others."""
    fields = {
        "a": (replace(SCORES, a="fp16"), 7 << 7),
        "b": (replace(SCORES, b="fp16"), 7 << 10),
        "m": (replace(SCORES, m=64), 31 << 24),
        "n": (replace(SCORES, n=240), 63 << 17),
        "a_mn_major": (replace(SCORES, a_mn_major=True), 1 << 15),
        "b_mn_major": (replace(SCORES, b_mn_major=True), 1 << 16),
        "result": (replace(SCORES, result="fp16"), 3 << 4),
    }
    for name, (product, bits) in fields.items():
        change = instruction_descriptor(product) ^ instruction_descriptor(SCORES)
        assert change and change & ~bits == 0, name


def panel_image(rows: int, columns: int, size: int) -> np.ndarray:
    """[rows][128 bytes] panels, one after the other, in the 128-byte swizzle as TMA writes it: element bits = index."""
    per_panel = 128 // size
    row, column = np.arange(rows)[:, None], np.arange(columns)[None, :]
    offset = column // per_panel * rows * 128 + row * 128 + column % per_panel * size
    chunk = offset & 127 & ~15
    where = offset - chunk + (chunk ^ (row % 8 * 16))
    image = np.zeros(rows * columns * size, np.uint8)
    bits = (row * columns + column).astype(np.uint32)
    for byte in range(size):
        image[where + byte] = bits >> (8 * byte) & 0xFF
    return image


@pytest.mark.parametrize("k", range(0, 128, 16))
def test_k_major_steps_inside_a_swizzled_row(k: int) -> None:
    """Keys as TMA leaves them, [128 keys][128 columns]: a step of 16 columns is 32 bytes on, whatever the swizzle."""
    image = panel_image(128, 128, 2)
    start = k // 64 * 128 * 128 + k % 64 * 2
    got = gather(image, addresses(KEYS, start, 128, 16), 2)
    assert (got == np.arange(128)[:, None] * 128 + k + np.arange(16)).all()


@pytest.mark.parametrize(("size", "depth", "columns"), [(2, 16, 128), (2, 16, 64), (1, 32, 128)])
def test_mn_major_reads_values_without_a_transpose(size: int, depth: int, columns: int) -> None:
    """Values as TMA leaves them, [128 keys][columns]: rows of the operand are columns, a step is `depth` keys on."""
    image = panel_image(128, columns, size)
    operand = Operand(k_major=False, swizzle=128, element_bytes=size, leading=128 * 128, stride=1024)
    for first in range(0, 128, depth):
        got = gather(image, addresses(operand, first * 128, columns, depth), size)
        keys, rows = first + np.arange(depth)[None, :], np.arange(columns)[:, None]
        assert (got == (keys * columns + rows) % (256 if size == 1 else 65536)).all()


def test_without_a_swizzle_strides_say_everything() -> None:
    """Core matrices of 8 rows by 16 bytes, by hand."""
    k_major = Operand(k_major=True, swizzle=0, element_bytes=2, leading=128, stride=256)
    found = addresses(k_major, 0, 16, 16)
    assert (found[1, 0], found[0, 7], found[0, 8], found[8, 0], found[9, 9]) == (16, 14, 128, 256, 256 + 16 + 128 + 2)
    mn_major = Operand(k_major=False, swizzle=0, element_bytes=2, leading=512, stride=128)
    found = addresses(mn_major, 0, 16, 16)
    assert (found[1, 0], found[0, 1], found[8, 0], found[0, 8], found[9, 9]) == (2, 16, 128, 512, 2 + 16 + 128 + 512)


@pytest.mark.parametrize("swizzle", [32, 64, 128])
def test_a_swizzle_permutes_the_chunks_of_each_row(swizzle: int) -> None:
    chunks = np.arange(0, 4096, 16)
    moved = swizzled(chunks, swizzle)
    assert sorted(moved) == chunks.tolist() and (moved // swizzle == chunks // swizzle).all()
    assert (swizzled(moved, swizzle) == chunks).all()
    assert len({tuple(moved[start : start + swizzle // 16] % swizzle) for start in range(0, 64, swizzle // 16)}) > 1
