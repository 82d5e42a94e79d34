"""tcgen05 in the emulator: products against numpy, and small kernels that keep or break one rule each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from tests.emulator import SCHEDULES
from tests.emulator.operands import STEP_BYTES, SWIZZLES, instruction, lanes_of, store
from tests.emulator.rules_sm100 import COLUMNS, Bench

every_schedule = pytest.mark.parametrize(("schedule", "seed"), [(s, i) for s in SCHEDULES for i in (0, 1, 2)])
TYPES = {"bf16": (torch.bfloat16, 1), "fp16": (torch.float16, 0), "e4m3": (torch.float8_e4m3fn, 0)}


@dataclass(frozen=True)
class Shape:
    """One product: what is multiplied and how its operands are stored."""

    element: str = "bf16"
    m: int = 128
    n: int = 128
    steps: int = 4
    a_swizzle: int | None = 128  # None: A is in tensor memory
    b_swizzle: int = 128
    a_mn_major: bool = False
    b_mn_major: bool = False
    interleaved: bool = False
    pad: int = 0
    accumulate: bool = False

    @property
    def k(self) -> int:
        return self.steps * STEP_BYTES // TYPES[self.element][0].itemsize


def whole(rng: np.random.Generator, rows: int, columns: int, element: str) -> tuple[np.ndarray, np.ndarray]:
    """Small whole numbers, whose sums of products are exact; as float64 and as the element's bits."""
    numbers = rng.integers(-8, 9, (rows, columns))
    bits = torch.from_numpy(numbers).to(TYPES[element][0])
    kind = np.uint8 if element == "e4m3" else np.uint16
    return numbers.astype(np.float64), bits.view(torch.uint8).numpy().view(kind).reshape(rows, columns)


def check(shape: Shape, schedule: str = "late", seed: int = 0) -> None:
    """Run ``multiply`` and compare every column of every lane."""
    rng = np.random.default_rng(shape.m + shape.n)
    (a, a_bits), (b, b_bits) = (whole(rng, rows, shape.k, shape.element) for rows in (shape.m, shape.n))
    kind, bench = TYPES[shape.element][1], Bench(accumulate=shape.accumulate)
    bench.instruction = instruction(
        shape.m, shape.n, a_type=kind, b_type=kind, a_mn_major=shape.a_mn_major, b_mn_major=shape.b_mn_major
    )
    b_at = 48 * 1024
    b_stored = store(
        b_bits, mn_major=shape.b_mn_major, swizzle=shape.b_swizzle, interleaved=shape.interleaved, pad=shape.pad
    )
    bench.image[b_at : b_at + b_stored.image.size] = b_stored.image
    b_steps = [b_stored.sm100(i, b_at) for i in range(shape.steps)]
    lanes = lanes_of(shape.m)
    if shape.a_swizzle is None:
        bench.a = np.full((128, COLUMNS), 0xFFFFFFFF, np.uint32)
        words = a_bits.view(np.uint32)
        bench.a[lanes, : words.shape[1]] = words
        a_steps = [8 * i for i in range(shape.steps)]
    else:
        a_stored = store(
            a_bits, mn_major=shape.a_mn_major, swizzle=shape.a_swizzle, interleaved=shape.interleaved, pad=shape.pad
        )
        assert a_stored.image.size <= b_at
        bench.image[: a_stored.image.size] = a_stored.image
        a_steps = [a_stored.sm100(i) for i in range(shape.steps)]
    bench.steps = list(zip(a_steps, b_steps, strict=True))
    before = rng.integers(-99, 100, bench.d.shape).astype(np.float32)
    bench.d[:] = before
    bench.run(f"multiply_{shape.element}", schedule, seed)
    expected = before.astype(np.float64)
    expected[lanes, : shape.n] = a @ b.T + (expected[lanes, : shape.n] if shape.accumulate else 0)
    np.testing.assert_array_equal(bench.d, expected)


@every_schedule
@pytest.mark.parametrize("shape", [Shape(), Shape(a_swizzle=None, b_mn_major=True, accumulate=True)])
def test_product_under_every_schedule(shape: Shape, schedule: str, seed: int) -> None:
    check(shape, schedule, seed)


@pytest.mark.parametrize("element", TYPES)
@pytest.mark.parametrize("mn_major", [False, True])
@pytest.mark.parametrize("swizzle", SWIZZLES)
@pytest.mark.parametrize("interleaved", [False, True])
def test_product_of_every_layout(element: str, mn_major: bool, swizzle: int, interleaved: bool) -> None:
    pad = 1 if interleaved else 0
    shape = Shape(element, interleaved=interleaved, pad=pad)
    check(replace(shape, b_swizzle=swizzle, b_mn_major=mn_major))
    check(replace(shape, a_swizzle=swizzle, a_mn_major=mn_major))
    check(replace(shape, a_swizzle=None, b_swizzle=swizzle, b_mn_major=mn_major))
