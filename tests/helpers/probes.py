"""Programs of tcgen05 products and what they leave in tensor memory: for the emulator now, for a B200 on its first day.

Shared memory is full of random small integers; a product says which bytes it read by what it gives. The model here is
tests/helpers/placement.py for shared memory, and the data paths of the notes for tensor memory.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from .descriptors import Product, instruction_descriptor, shared_descriptor
from .placement import Operand
from .walks import B_START, IMAGE_BYTES, TORCH, VALUES, elements, k_major_layouts, mn_major_layouts

SOURCE = Path(__file__).with_name("probes.cu")
SMEM_BYTES, THREADS, LANES, COLUMNS = IMAGE_BYTES + 64, 128, 128, 512
_ENTRY = """
extern "C" __global__ void __launch_bounds__(128, 1) {name}(const __grid_constant__ skimattn::Params params) {{
  probes::run<skimattn::Element{element}>(params);
}}
"""
_ELEMENTS = {"bf16": "Bf16", "fp16": "Bf16", "e4m3": "E4m3"}  # the instruction descriptor tells bf16 from fp16
_STEP = "<QQIIII"
Words = NDArray[np.uint32]
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Step:
    """One product into columns from ``d`` on. A is (layout, start), or the column where it lies in tensor memory."""

    product: Product
    d: int
    a: tuple[Operand, int] | int
    b: tuple[Operand, int]
    accumulate: bool = False

    def pack(self) -> bytes:
        """As probes.cu reads it."""
        a = self.a if isinstance(self.a, int) else shared_descriptor(*self.a)
        instruction, b = instruction_descriptor(self.product), shared_descriptor(*self.b)
        return struct.pack(_STEP, a, b, self.d, instruction, isinstance(self.a, int), self.accumulate)


@dataclass(frozen=True)
class Program:
    """What one CTA does, and what is shown by it."""

    name: str
    shows: str
    dtype: str
    steps: tuple[Step, ...]
    halves: bool = False  # moves words by loads and stores of 16 lanes (16x32bx2) instead


def lanes_of(m: int) -> NDArray[np.int64]:
    """The lane of each row of D and of an A in tensor memory: M 64 takes 16 lanes of each warp's 32."""
    row = np.arange(m)
    return row if m == 128 else row // 16 * 32 + row % 16


def run_model(program: Program, image: Image, before: Words) -> Words:
    """Tensor memory [128, 512] after a program, its products one after the other."""
    memory = before.copy()
    if program.halves:
        _move_halves(memory)
    for step in program.steps:
        m, n, depth = step.product.m, step.product.n, step.product.depth
        lanes = lanes_of(m)
        if isinstance(step.a, int):
            packed = np.ascontiguousarray(memory[lanes, step.a : step.a + 8])
            bits = packed.view(np.uint8 if step.product.kind == "f8f6f4" else np.int16)
            a = torch.from_numpy(bits).view(TORCH[step.product.a]).double()
        else:
            a = elements(image, step.a[0], step.a[1], m, depth, step.product.a)
        b = elements(image, step.b[0], step.b[1], n, depth, step.product.b)
        sums = (a @ b.T).float().numpy()
        columns = slice(step.d, step.d + n)
        if step.accumulate:
            sums = sums + memory[lanes, columns].view(np.float32)
        memory[lanes, columns] = sums.view(np.uint32)
    return memory


def _move_halves(memory: Words) -> None:
    """Thread i of a warp has lane i % 16, from 16 on with columns 96 further on."""
    lane = np.arange(LANES)
    first, offset = lane // 32 * 32 + lane % 16, lane % 32 // 16 * 96
    columns = offset[:, None] + np.arange(32)
    memory[:, 256:288] = memory[first[:, None], columns]
    memory[first[:, None], 384 + columns] = memory[:, 32:64].copy()


def layout_programs() -> list[Program]:
    """One product for every layout as A and as B, with all types, widths and both heights."""
    found = []
    plain = (Operand(True, 128, 2, 16, 1024), B_START)
    for index, (operand, start) in enumerate([*k_major_layouts(2), *mn_major_layouts(2)]):
        dtype, n = ("bf16", "fp16")[index % 2], (64, 128, 256)[index % 3]
        product = Product(dtype, dtype, 128, n, b_mn_major=not operand.k_major)
        as_b = Step(product, 0, (plain[0], 32), (operand, B_START + start))
        product = Product(dtype, dtype, (128, 64)[index % 4 == 3], n, a_mn_major=not operand.k_major)
        as_a = Step(product, 256, (operand, start), plain)
        label = f"{'K' if operand.k_major else 'MN'}-major-{operand.swizzle}-{index}"
        found.append(Program(f"b-{label}", "operand B in shared memory", dtype, (as_b,)))
        found.append(Program(f"a-{label}", "operand A in shared memory", dtype, (as_a,)))
    byte = (Operand(True, 128, 1, 16, 1024), B_START)
    for index, (operand, start) in enumerate([*k_major_layouts(1), *mn_major_layouts(1)]):
        product = Product("e4m3", "e4m3", 128, (64, 128, 256)[index % 3], b_mn_major=not operand.k_major)
        as_b = Step(product, 0, (byte[0], 32), (operand, B_START + start))
        label = f"{'K' if operand.k_major else 'MN'}-major-{operand.swizzle}-{index}"
        found.append(Program(f"fp8-{label}", "8-bit operand B in shared memory", "e4m3", (as_b,)))
    return found


def attention_steps(dtype: str, head_dim: int, keys: int = 128) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """(Q.K into columns 0 to 127, P.V from P at column 64 into columns from 256 on), as the kernels issue them."""
    size = 1 if dtype == "e4m3" else 2
    depth, per_panel = 32 // size, 128 // size
    panel = Operand(True, 128, size, 16, 1024)
    values = Operand(False, 128, size, keys * 128, 1024)
    scores = Product(dtype, dtype, 128, keys)
    weighted = Product(dtype, dtype, 128, head_dim, b_mn_major=True)
    qk, pv = [], []
    for k in range(0, head_dim, depth):
        at = k // per_panel * keys * 128 + k % per_panel * size
        qk.append(Step(scores, 0, (panel, at), (panel, B_START + at), accumulate=k > 0))
    for k in range(0, keys, depth):
        v = (values, B_START + k * 128)
        pv.append(Step(weighted, 256, 64 + k * size // 4, v, accumulate=k > 0))
    return tuple(qk), tuple(pv)


def chain_programs() -> list[Program]:
    """The products of a tile: accumulation, K advanced, P from tensor memory, and S written over P in issue order."""
    found = []
    for dtype in ("bf16", "fp16", "e4m3"):
        for head_dim in (64, 128, 256):
            if dtype == "e4m3" and head_dim == 64:
                continue  # half a panel: the kernels' geometry is tested on its own
            qk, pv = attention_steps(dtype, min(head_dim, 128))
            wide = tuple(replace(step, product=replace(step.product, n=head_dim)) for step in pv)
            name = f"{dtype}-d{head_dim}"
            found.append(Program(f"scores-{name}", "accumulation over K", dtype, qk))
            found.append(Program(f"values-{name}", "A in tensor memory, B MN-major", dtype, wide))
            found.append(Program(f"order-{name}", "products execute in the order of issue", dtype, wide + qk))
            again = wide + qk + tuple(replace(step, accumulate=True) for step in qk)
            found.append(Program(f"orders-{name}", "products execute in the order of issue", dtype, again))
    return found


@cache
def programs() -> tuple[Program, ...]:
    """Everything that is probed, the simplest first. The first two have no product: st and ld alone."""
    moves = (
        Program("copy", "st and ld reach the same cells", "bf16", ()),
        Program("halves", "st and ld of 16 lanes reach the cells that they should", "bf16", (), halves=True),
    )
    return (*moves, *layout_programs(), *chain_programs())


def fill(chosen: tuple[Program, ...], seed: int = 5) -> tuple[Image, Words]:
    """Shared memory [programs, bytes] and tensor memory [programs, 128, 512] before, of small integers everywhere."""
    rng = np.random.default_rng(seed)
    images = np.empty((len(chosen), IMAGE_BYTES), np.uint8)
    before = np.empty((len(chosen), LANES, COLUMNS), np.uint32)
    for program, image, memory in zip(chosen, images, before, strict=True):
        codes = torch.tensor(list(VALUES), dtype=torch.float32).to(TORCH[program.dtype]).view(torch.uint8)
        table = codes.view(len(VALUES), -1).numpy()
        for target in (image, memory.view(np.uint8).reshape(-1)):
            target[:] = table[rng.integers(0, len(VALUES), target.size // table.shape[1])].reshape(-1)
    return images, before


def entry_source(name: str, dtype: str) -> str:
    """The kernel ``name`` for programs of a dtype."""
    return SOURCE.read_text() + _ENTRY.format(name=name, element=_ELEMENTS[dtype])


def pack_steps(chosen: tuple[Program, ...]) -> tuple[NDArray[np.uint8], NDArray[np.int32], int]:
    """(steps as bytes [programs, most, 32], number of steps [programs], most)."""
    most = max(1, max(len(program.steps) for program in chosen))
    packed = np.zeros((len(chosen), most, struct.calcsize(_STEP)), np.uint8)
    for row, program in zip(packed, chosen, strict=True):
        for at, step in zip(row, program.steps, strict=False):
            at[:] = np.frombuffer(step.pack(), np.uint8)
    counts = [-1 if program.halves else len(program.steps) for program in chosen]
    return packed, np.array(counts, np.int32), most


def differences(chosen: tuple[Program, ...], images: Image, before: Words, after: Words) -> dict[str, int]:
    """How many cells of tensor memory are not as the model says, for programs where any are."""
    found = {}
    for program, image, held, got in zip(chosen, images, before, after, strict=True):
        wrong = int((run_model(program, image, held) != got).sum())
        if wrong:
            found[program.name] = wrong
    return found
