"""tcgen05 in the emulator: products against numpy, and small kernels that keep or break one rule each."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from tests.emulator import SCHEDULES, EmulatorError
from tests.emulator.operands import STEP_BYTES, SWIZZLES, instruction, lanes_of, store
from tests.emulator.rules_sm100 import BROKEN, COLUMNS, RACES, Bench, names

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


def bench_of(shape: Shape, rng: np.random.Generator) -> tuple[Bench, np.ndarray]:
    """Operands in memory and the steps of their product; what D should be afterwards."""
    (a, a_bits), (b, b_bits) = (whole(rng, rows, shape.k, shape.element) for rows in (shape.m, shape.n))
    kind, bench = TYPES[shape.element][1], Bench(accumulate=shape.accumulate)
    bench.instruction = instruction(
        shape.m, shape.n, a_type=kind, b_type=kind, a_mn_major=shape.a_mn_major, b_mn_major=shape.b_mn_major
    )
    b_at, lanes = 48 * 1024, lanes_of(shape.m)
    b_stored = store(
        b_bits, mn_major=shape.b_mn_major, swizzle=shape.b_swizzle, interleaved=shape.interleaved, pad=shape.pad
    )
    bench.image[b_at : b_at + b_stored.image.size] = b_stored.image
    b_steps = [b_stored.sm100(i, b_at) for i in range(shape.steps)]
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
    bench.d[:] = rng.integers(-99, 100, bench.d.shape)
    expected = bench.d.astype(np.float64)
    expected[lanes, : shape.n] = a @ b.T + (expected[lanes, : shape.n] if shape.accumulate else 0)
    return bench, expected


def check(shape: Shape, schedule: str = "late", seed: int = 0) -> None:
    """Run ``multiply`` and compare every column of every lane."""
    bench, expected = bench_of(shape, np.random.default_rng(shape.m + shape.n))
    bench.run(f"multiply_{shape.element}", schedule, seed)
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


@pytest.mark.parametrize("element", TYPES)
@pytest.mark.parametrize("m", [64, 128])
@pytest.mark.parametrize("n", [16, 32, 48, 64, 80, 128, 192, 240, 256])
def test_product_of_every_shape(element: str, m: int, n: int) -> None:
    shape = Shape(element, m, n, steps=2, a_swizzle=64, b_swizzle=64)
    check(shape)
    check(replace(shape, a_swizzle=None, accumulate=True))


def attention(rng: np.random.Generator) -> tuple[Bench, np.ndarray]:
    """What ``attention`` is given, and the output it should leave: S = Q K^T twice, O = 3 bf16(S) V."""
    bench = Bench()
    (q, q_bits), (k, k_bits), (v, v_bits) = (whole(rng, *size, "bf16") for size in ((128, 16), (64, 16), (32, 16)))
    q_stored, k_stored = (store(x, mn_major=False, swizzle=32) for x in (q_bits, k_bits))
    v_stored = store(v_bits, mn_major=True, swizzle=64)
    for at, stored in ((0, q_stored), (8192, k_stored), (16384, v_stored)):
        bench.image[at : at + stored.image.size] = stored.image
    bench.steps = [(q_stored.sm100(0), k_stored.sm100(0, 8192)), (0, v_stored.sm100(0, 16384))]
    bench.instruction = instruction(128, 64, a_type=1, b_type=1)
    bench.second_instruction = instruction(128, 32, a_type=1, b_type=1, b_mn_major=True)
    p = torch.from_numpy((q @ k.T)[:, :16]).bfloat16().double().numpy()
    return bench, 3 * p @ v.T


@every_schedule
@pytest.mark.parametrize("commit_each", [False, True])
def test_attention(schedule: str, seed: int, commit_each: bool) -> None:
    bench, expected = attention(np.random.default_rng(1))
    bench.run("attention", schedule, seed, commit_each=commit_each, strict_products=commit_each)
    np.testing.assert_array_equal(bench.d[:, :32], expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_order_of_products_may_be_the_isa_alone(schedule: str) -> None:
    bench, _ = attention(np.random.default_rng(1))
    message = (
        r"early-overwrite.*tcgen05_mma uses column \d+, which a tcgen05_mma reads: no tcgen05_commit of thread 128"
    )
    with pytest.raises(EmulatorError, match=message):
        bench.run("attention", schedule, strict_products=True)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rule_is_reported(name: str) -> None:
    kind, message = BROKEN[name]
    bench, _ = attention(np.random.default_rng(1))
    with pytest.raises(EmulatorError) as caught:
        bench.run(name, "early" if kind == "race" else "late")
    assert caught.value.kind == kind, caught.value
    assert re.search(message, caught.value.message, re.S), caught.value


@pytest.mark.parametrize("name", RACES)
def test_lucky_order_is_a_race(name: str) -> None:
    bench, _ = attention(np.random.default_rng(1))
    with pytest.raises(EmulatorError) as caught:
        bench.run(name, "early")
    assert caught.value.kind == "race", caught.value


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rule_is_reported_at_random(name: str) -> None:
    bench, _ = attention(np.random.default_rng(1))
    for seed in range(4):
        with pytest.raises(EmulatorError):
            bench.run(name, "random", seed)


@every_schedule
@pytest.mark.parametrize("name", ["operand_released", "operand_loaded", "landing_passed_on"])
def test_operands_by_tma(name: str, schedule: str, seed: int) -> None:
    attention(np.random.default_rng(1))[0].run(name, schedule, seed)


def test_every_rule_kernel_is_used() -> None:
    right = {"multiply_bf16", "multiply_fp16", "multiply_e4m3", "attention", "alloc_twice"}
    right |= {"operand_released", "operand_loaded", "landing_passed_on", "registers_used_early"}
    assert set(names()) == right | set(BROKEN)


def test_allocations_are_apart() -> None:
    bench = Bench()
    bench.run("alloc_twice", "early")
    assert bench.d[0, 0] == 2  # columns 0 and 64
    bench.run("alloc_twice", "late")
    assert bench.d[0, 0] == 1413  # 448 and 416: from the far end


@pytest.mark.parametrize("schedule", ["late", "random"])
def test_load_used_before_its_wait_is_nan(schedule: str) -> None:
    bench = Bench()
    bench.run("registers_used_early", schedule, 3)
    assert np.isnan(bench.d.reshape(-1)[:32]).all()


BASE = Shape(b_mn_major=True)
BAD_BITS = {  # what -> (which bits, xor, message)
    "version": ("b", 1 << 46, r"operand B: expected 0b001 in bits 46-48, the version \(got 0\)"),
    "version 2": ("b", 1 << 47, r"the version \(got 3\)"),
    "base offset": ("b", 1 << 50, r"operand B: expected base offset 0.*\(got 2\)"),
    "absolute leading offset": ("b", 1 << 52, r"bit 52 clear"),
    "reserved 14": ("b", 1 << 14, r"operand B: reserved bits"),
    "reserved 30": ("b", 1 << 31, r"reserved bits"),
    "reserved 53": ("b", 1 << 53, r"reserved bits"),
    "reserved 60": ("a", 1 << 60, r"operand A: reserved bits"),
    "layout 1": ("a", 3 << 61, r"operand A: expected layout type 0, 2, 4 or 6 \(got 1\)"),
    "layout 7": ("a", 5 << 61, r"layout type 0, 2, 4 or 6 \(got 7\)"),
    "start in an atom": (
        "a",
        256 >> 4,
        r"operand A starts at smem address \d+, which is 256 bytes into a swizzle atom",
    ),
    "start late in a row": ("a", 112 >> 4, r"112 bytes into a swizzle atom"),
    "start in an MN-major atom": ("b", 32 >> 4, r"operand B starts at smem address \d+, which is 32 bytes into"),
    "stride": ("a", 512 >> 4 << 32, r"operand A: expected a stride byte offset .*1024 \(got 1536\)"),
    "leading": ("b", 256 >> 4 << 16, r"operand B: expected a leading byte offset"),
    "beyond shared memory": ("a", 0x3000 << 0, r"operand A reads smem\+\d+, outside the"),
    "D type": ("instruction", 1 << 5, r"type of D: expected 1, float32 \(got 3\)"),
    "A type": ("instruction", 3 << 7, r"type of A: expected 0 or 1, fp16 or bf16 \(got 2\)"),
    "A and B differ": ("instruction", 1 << 10, r"of the same type"),
    "sparsity": ("instruction", 1 << 2, r"expected sparsity to be 0"),
    "selector": ("instruction", 2, r"the sparsity selector to be 0 \(got 2\)"),
    "saturation": ("instruction", 1 << 3, r"saturation"),
    "negation": ("instruction", 1 << 14, r"negation of B"),
    "reserved 6": ("instruction", 1 << 6, r"reserved bit 6"),
    "reserved 23": ("instruction", 1 << 23, r"reserved bit 23"),
    "reserved 29": ("instruction", 1 << 29, r"reserved bit 29"),
    "maximum shift": ("instruction", 1 << 30, r"the maximum shift"),
    "M": ("instruction", 4 << 24, r"expected M 64 or 128 \(got 192\)"),
    "N": ("instruction", 1 << 17, r"expected N a multiple of 16 up to 256 for M 128 \(got 136\)"),
    "N 0": ("instruction", 16 << 17, r"up to 256 for M 128 \(got 0\)"),
}


@pytest.mark.parametrize("name", BAD_BITS)
def test_bad_bits(name: str) -> None:
    where, change, message = BAD_BITS[name]
    bench = bench_of(BASE, np.random.default_rng(0))[0]
    a, b = bench.steps[0]
    bench.steps[:1] = [(a ^ change * (where == "a"), b ^ change * (where == "b"))]
    bench.instruction ^= change * (where == "instruction")
    with pytest.raises(EmulatorError, match=message) as caught:
        bench.run("multiply_bf16")
    assert caught.value.kind == ("out-of-bounds" if name == "beyond shared memory" else "descriptor")


def test_a_of_tensor_memory_is_k_major() -> None:
    bench = bench_of(replace(BASE, a_swizzle=None), np.random.default_rng(0))[0]
    bench.instruction |= 1 << 15
    with pytest.raises(EmulatorError, match=r"descriptor: .*expected a K-major A"):
        bench.run("multiply_bf16")


@pytest.mark.parametrize(("n", "b_mn_major"), [(24, True), (8, True)])
def test_narrow_steps_of_n_need_16_bit_elements(n: int, b_mn_major: bool) -> None:
    check(Shape("bf16", 64, n, steps=1, a_swizzle=32, b_swizzle=0, b_mn_major=b_mn_major))
    check(Shape("e4m3", 64, n, steps=1, a_swizzle=32, b_swizzle=0))
    bench = bench_of(
        Shape("e4m3", 64, 32, steps=1, a_swizzle=32, b_swizzle=0, b_mn_major=True), np.random.default_rng(0)
    )[0]
    bench.instruction ^= (32 ^ n) // 8 << 17
    with pytest.raises(EmulatorError, match=r"expected N a multiple of 16 up to 256 for M 64"):
        bench.run("multiply_e4m3")


def test_operands_are_what_their_bits_say() -> None:
    """Every e4m3 number, and NaN, through a product with the identity."""
    shape = Shape("e4m3", n=128, steps=4, a_swizzle=128)
    bench, _ = bench_of(shape, np.random.default_rng(0))
    codes = np.arange(128 * 128).reshape(128, 128).astype(np.uint8)
    codes[codes & 0x7F == 0x7F] = 0
    stored = store(codes, mn_major=False, swizzle=128)
    identity = store(torch.eye(128).to(torch.float8_e4m3fn).view(torch.uint8).numpy(), mn_major=False, swizzle=128)
    bench.image[: stored.image.size] = stored.image
    bench.image[48 * 1024 : 48 * 1024 + identity.image.size] = identity.image
    bench.run("multiply_e4m3")
    expected = torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(bench.d[:, :128], expected)
