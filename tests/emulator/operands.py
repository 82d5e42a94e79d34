"""Where operands of tensor-core products lie in shared memory and tensor memory, and the bits that say so.

Written from the tables of the PTX ISA for tests of the emulator, without a look at its walk: rows of the swizzle's
width whose 16-byte chunks are permuted by the row (as TMA stores them), or 8 x 16-byte core matrices without a swizzle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

Bytes = np.ndarray  # uint8
SWIZZLES = (128, 64, 32, 0)
_LAYOUT_SM100 = {0: 0, 128: 2, 64: 4, 32: 6}
_LAYOUT_SM90 = {0: 0, 128: 1, 64: 2, 32: 3}
STEP_BYTES = 32  # of K in one product


@dataclass(frozen=True)
class Stored:
    """A matrix as bytes of shared memory, from a 1024-byte boundary on, and how descriptors find it."""

    image: Bytes
    swizzle: int
    leading: int
    stride: int
    steps: tuple[int, ...]  # byte offset of each product's part of K

    def sm100(self, step: int, base: int = 0) -> int:
        """The 64-bit descriptor of tcgen05.mma; ``base`` is where the image starts."""
        return self._common(step, base) | 1 << 46 | _LAYOUT_SM100[self.swizzle] << 61

    def sm90(self, step: int, base: int = 0) -> int:
        """The 64-bit descriptor of wgmma."""
        return self._common(step, base) | _LAYOUT_SM90[self.swizzle] << 62

    def _common(self, step: int, base: int) -> int:
        return (base + self.steps[step]) >> 4 | self.leading >> 4 << 16 | self.stride >> 4 << 32


def store(matrix: np.ndarray, *, mn_major: bool, swizzle: int, interleaved: bool = False, pad: int = 0) -> Stored:
    """Place ``matrix`` [m or n, k] of any element type.

    ``interleaved`` swaps which of leading and stride offset is the larger; ``pad`` widens the larger one by so many
    swizzle atoms (core matrices if there is no swizzle).
    """
    lines = np.ascontiguousarray(matrix.T if mn_major else matrix)  # [line][contiguous]
    data = lines.view(np.uint8).reshape(lines.shape[0], -1)
    groups = data.shape[0] // 8
    width = swizzle or 16
    panels = data.shape[1] // width
    atom = 8 * width
    # Of the two ways to go on, eight lines down or a panel to the right, one is the next atom.
    down, right = (panels + pad) * atom if interleaved else atom, atom if interleaved else (groups + pad) * atom
    image = np.zeros((groups - 1) * down + (panels - 1) * right + atom, np.uint8)
    for line in range(data.shape[0]):
        for chunk in range(data.shape[1] // 16):
            panel, place = divmod(chunk, width // 16)
            place ^= _permutation(swizzle, line % 8)
            at = line // 8 * down + panel * right + line % 8 * width + place * 16
            image[at : at + 16] = data[line, chunk * 16 : chunk * 16 + 16]
    if mn_major:
        k_lines = STEP_BYTES // matrix.itemsize
        steps = [step // 8 * down for step in range(0, data.shape[0], k_lines)]
        leading, stride = (right, down) if swizzle else (down, right)
    else:
        steps = [byte // width * right + byte % width for byte in range(0, data.shape[1], STEP_BYTES)]
        leading, stride = (16, down) if swizzle else (right, down)
    return Stored(image, swizzle, leading, stride, tuple(steps))


def numbers(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """64 x 64 small whole numbers: as float64, and as bits of bf16."""
    values = np.random.default_rng(seed).integers(-8, 9, (64, 64))
    bits = torch.from_numpy(values).bfloat16().view(torch.uint8).numpy().view(np.uint16)
    return values.astype(np.float64), bits.reshape(64, 64)


def _permutation(swizzle: int, line: int) -> int:
    """What the 16-byte chunks of a line are exchanged by: each atom of 1024, 512 or 256 bytes is permuted."""
    return {128: line, 64: line // 2, 32: line // 4, 0: 0}[swizzle]


def instruction(m: int, n: int, *, a_type: int, b_type: int, a_mn_major: bool = False, b_mn_major: bool = False) -> int:
    """The 32-bit instruction descriptor of a product with float32 accumulators."""
    return 1 << 4 | a_type << 7 | b_type << 10 | a_mn_major << 15 | b_mn_major << 16 | n // 8 << 17 | m // 16 << 24


def lanes_of(m: int) -> np.ndarray:
    """The tensor memory lane of each row of D or A: all lanes for m 128, 16 of each warp's for m 64."""
    rows = np.arange(m)
    return rows if m == 128 else rows // 16 * 32 + rows % 16
