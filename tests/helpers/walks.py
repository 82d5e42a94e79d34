"""Single wgmma products that read shared memory through every kind of descriptor, and what they must give.

wgmma (SM90) and tcgen05 (SM100) share the walk from a descriptor to bytes. Here it is made visible on an SM90 GPU:
shared memory is filled with random small integers, one product reads two operands out of it, and its exact result says
which bytes it read. tests/helpers/placement.py is what is compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from .descriptors import sm90_descriptor
from .placement import Operand, addresses, gather

IMAGE_BYTES = 128 << 10
B_START = 48 << 10
ROWS = 64  # of wgmma's operand A
VALUES = range(-4, 5)  # of all elements: sums stay far below what float32 holds exactly
TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16, "e4m3": torch.float8_e4m3fn}
_PTX = {"bf16": "bf16", "fp16": "f16", "e4m3": "e4m3"}


@dataclass(frozen=True)
class Walk:
    """One product: 64 rows by ``n`` columns, operands at byte offsets of the image."""

    name: str
    dtype: str
    n: int
    a: Operand
    a_start: int
    b: Operand
    b_start: int

    @property
    def depth(self) -> int:
        """Elements along K."""
        return 32 if self.dtype == "e4m3" else 16

    @property
    def kernel(self) -> tuple[str, int, bool, bool]:
        """What is fixed in the instruction: type, N, and whether A and B are MN-major."""
        return self.dtype, self.n, not self.a.k_major, not self.b.k_major

    @property
    def descriptors(self) -> tuple[int, int]:
        """Of A and B, as if shared memory started at 0."""
        return sm90_descriptor(self.a, self.a_start), sm90_descriptor(self.b, self.b_start)


def k_major_layouts(size: int) -> list[tuple[Operand, int]]:
    """(layout, byte offset of the first element): dense and wide strides, K advanced inside a swizzled row."""
    found = []
    for swizzle in (128, 64, 32):
        for inside in range(0, swizzle, 32):
            found.append((Operand(True, swizzle, size, 16, 8 * swizzle), inside))
        found.append((Operand(True, swizzle, size, 16, 16 * swizzle), 0))
        found.append((Operand(True, swizzle, size, 4096, 8 * swizzle), swizzle - 32))  # the leading offset is not used
    plain = [(128, 256), (4096, 128), (4880, 144)]  # strides between 16 bytes of a row, between groups of rows
    return found + [(Operand(True, 0, size, leading, stride), 16) for leading, stride in plain]


def mn_major_layouts(size: int) -> list[tuple[Operand, int]]:
    """Likewise for 16-bit operands whose rows lie side by side; K advanced by the two groups of 8 of a k16 step."""
    found = []
    for swizzle in (128, 64, 32):
        group = 8 * swizzle
        for leading, stride in ((128 * swizzle, group), (group, 16 * group), (16 * group, 2 * group)):
            found.append((Operand(False, swizzle, size, leading, stride), 0))
        found.append((Operand(False, swizzle, size, 128 * swizzle, group), 2 * group))
    plain = [(4096, 128), (128, 256), (4880, 144)]
    return found + [(Operand(False, 0, size, leading, stride), 16) for leading, stride in plain]


@cache
def walks() -> tuple[Walk, ...]:
    """Every layout as A and as B, beside a plain partner, and pairs of all kinds; the widths go round."""
    plain = Operand(True, 128, 2, 16, 1024)
    found: list[Walk] = []

    def add(dtype: str, a: tuple[Operand, int], b: tuple[Operand, int], n: int) -> None:
        name = f"{len(found)}-{dtype}-n{n}-{_label(a[0])}-{_label(b[0])}"
        found.append(Walk(name, dtype, n, a[0], a[1], b[0], B_START + b[1]))

    layouts = [*k_major_layouts(2), *mn_major_layouts(2)]
    for index, layout in enumerate(layouts):
        add("bf16", layout, (plain, 0), 64)
        for n in (64, 96, 128, 256):
            add("bf16", (plain, index % 4 * 32), layout, n)
        add("bf16", layout, layouts[(7 * index + 3) % len(layouts)], 128)
        add("fp16", layout, layouts[(5 * index + 1) % len(layouts)], 64)
    bytewise = k_major_layouts(1)
    for index, layout in enumerate(bytewise):
        add("e4m3", layout, bytewise[(3 * index + 2) % len(bytewise)], (64, 128, 256)[index % 3])
    return tuple(found)


def _label(operand: Operand) -> str:
    return f"{'k' if operand.k_major else 'mn'}{operand.swizzle}"


def images(chosen: tuple[Walk, ...]) -> NDArray[np.uint8]:
    """[walks, IMAGE_BYTES]: shared memory full of random small integers of each walk's type."""
    rng = np.random.default_rng(11)
    found = np.empty((len(chosen), IMAGE_BYTES), np.uint8)
    for row, walk in zip(found, chosen, strict=True):
        codes = torch.tensor(list(VALUES), dtype=torch.float32).to(TORCH[walk.dtype]).view(torch.uint8)
        table = codes.view(len(VALUES), -1).numpy()
        row[:] = table[rng.integers(0, len(VALUES), IMAGE_BYTES // table.shape[1])].reshape(-1)
    return found


def elements(image: NDArray[np.uint8], operand: Operand, start: int, rows: int, depth: int, dtype: str) -> torch.Tensor:
    """The operand [rows, depth] that a product reads, as float64."""
    bits = gather(image, addresses(operand, start, rows, depth), operand.element_bytes)
    plain = torch.from_numpy(bits.view(np.uint8 if operand.element_bytes == 1 else np.int16))
    return plain.view(TORCH[dtype]).double()


def expected(walk: Walk, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The exact product, [64, n]."""
    a = elements(image, walk.a, walk.a_start, ROWS, walk.depth, walk.dtype)
    b = elements(image, walk.b, walk.b_start, walk.n, walk.depth, walk.dtype)
    return np.asarray((a @ b.T).float().numpy())


def kernel_name(kernel: tuple[str, int, bool, bool]) -> str:
    """The entry that runs walks of this kind."""
    dtype, n, a_mn, b_mn = kernel
    return f"walk_{dtype}_n{n}_{'mn' if a_mn else 'k'}_{'mn' if b_mn else 'k'}"


def kernel_source(kernel: tuple[str, int, bool, bool]) -> str:
    """One CTA of a warpgroup a walk: copy the image to shared memory, multiply once, write [64, n] floats."""
    dtype, n, a_mn, b_mn = kernel
    registers, ptx = n // 2, _PTX[dtype]
    listed = ", ".join(f"%{i}" for i in range(registers))
    outputs = ", ".join(f'"+f"(d[{i}])' for i in range(registers))
    majors = "" if dtype == "e4m3" else f", {int(a_mn)}, {int(b_mn)}"
    shape = f"m64n{n}k{32 if dtype == 'e4m3' else 16}.f32.{ptx}.{ptx}"
    return f"""
extern "C" __global__ void __launch_bounds__(128, 1)
    {kernel_name(kernel)}(const uint4* images, const unsigned long long* descriptors, float* out) {{
  extern __shared__ __align__(1024) uint4 smem[];
  const int thread = threadIdx.x;
  for (int i = thread; i < {IMAGE_BYTES // 16}; i += 128) smem[i] = images[blockIdx.x * {IMAGE_BYTES // 16} + i];
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  const unsigned base = static_cast<unsigned>(__cvta_generic_to_shared(smem));
  if (base % 1024 != 0) __trap();
  const unsigned long long a = descriptors[2 * blockIdx.x] + (base >> 4);
  const unsigned long long b = descriptors[2 * blockIdx.x + 1] + (base >> 4);
  float d[{registers}] = {{}};
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  asm volatile("wgmma.mma_async.sync.aligned.{shape} {{{listed}}}, %{registers}, %{registers + 1}, 1, 1, 1{majors};"
      : {outputs} : "l"(a), "l"(b));
  asm volatile("wgmma.commit_group.sync.aligned;\\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
  for (int i = 0; i < {registers}; ++i) {{
    const int row = thread / 32 * 16 + thread % 32 / 4 + (i >> 1 & 1) * 8;
    out[(blockIdx.x * 64 + row) * {n} + (i >> 2) * 8 + thread % 4 * 2 + (i & 1)] = d[i];
  }}
}}
"""
