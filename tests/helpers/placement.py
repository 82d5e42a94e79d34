"""Where the elements of a matrix operand lie in shared memory: the walk that wgmma and tcgen05 share, in numpy.

Written from the canonical layouts of the PTX ISA (matrix descriptors). The emulator's C++ is compared with this, and so
is an H200, through wgmma (tests/gpu/test_gpu_anchor.py). Addresses are bytes from the start of shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Addresses = NDArray[np.int64]
CHUNK = 16  # bytes that a swizzle moves as one
_ATOM = 8  # rows of a swizzle pattern


@dataclass(frozen=True)
class Operand:
    """A layout in shared memory; "rows" are the M of an operand A and the N of an operand B.

    Args:
        k_major: whether a row's elements lie side by side, or else those of one k.
        swizzle: bytes of the pattern's rows: 128, 64, 32, or 0 for none.
        element_bytes: 1 or 2.
        leading: the descriptor's leading byte offset. K-major without swizzle: from 16 bytes of a row to the next.
            MN-major with swizzle: from ``swizzle`` bytes of rows to the next. MN-major without: between groups of 8 k.
            K-major with swizzle: not used.
        stride: the stride byte offset. K-major: between groups of 8 rows. MN-major with swizzle: between groups of 8 k.
            MN-major without: from 16 bytes of rows to the next.
    """

    k_major: bool
    swizzle: int
    element_bytes: int
    leading: int
    stride: int

    def __post_init__(self) -> None:
        """Refuse what no descriptor can say."""
        if self.swizzle not in (0, 32, 64, 128):
            raise ValueError(f"swizzle: expected 0, 32, 64 or 128 bytes (got {self.swizzle})")


def swizzled(address: Addresses, swizzle: int) -> Addresses:
    """Byte addresses after the XOR of a swizzle: of 16-byte chunks with the pattern's row, by address bits alone."""
    rows = {0: 0, 32: 1, 64: 3, 128: 7}[swizzle]
    return np.asarray(address ^ ((address >> 7 & rows) << 4), dtype=np.int64)


def _linear(operand: Operand, rows: int, depth: int) -> Addresses:
    """Offsets [rows, depth] from the operand's start, before the swizzle."""
    row, k = np.arange(rows)[:, None], np.arange(depth)[None, :]
    size, per_chunk = operand.element_bytes, CHUNK // operand.element_bytes
    wide = max(operand.swizzle, CHUNK)
    if operand.k_major:
        group, inside = row // _ATOM * operand.stride, row % _ATOM * wide
        step = CHUNK if operand.swizzle else operand.leading
        return np.asarray(group + inside + k // per_chunk * step + k % per_chunk * size)
    per_atom = wide // size
    groups, atoms = (operand.stride, operand.leading) if operand.swizzle else (operand.leading, operand.stride)
    return np.asarray(row // per_atom * atoms + row % per_atom * size + k // _ATOM * groups + k % _ATOM * wide)


def addresses(operand: Operand, start: int, rows: int, depth: int) -> Addresses:
    """The byte address of every element [rows, depth] that one product reads from an operand at ``start``."""
    return swizzled(start + _linear(operand, rows, depth), operand.swizzle)


def gather(image: NDArray[np.uint8], where: Addresses, element_bytes: int) -> NDArray[np.unsignedinteger]:
    """The bits of the elements at byte addresses ``where`` of an image of shared memory."""
    parts = [image[where + byte].astype(np.uint16) << (8 * byte) for byte in range(element_bytes)]
    bits = parts[0] if element_bytes == 1 else parts[0] | parts[1]
    return np.asarray(bits, dtype=np.uint8 if element_bytes == 1 else np.uint16)
