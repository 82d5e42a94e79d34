"""The walk from a descriptor to the bytes of shared memory, on an SM90 GPU: wgmma against tests/helpers/placement.py.

The emulator's tcgen05 reads shared memory by the same rules and is compared with the same numpy model, so what holds
here holds for the half of SM100's operand layouts that the two instructions share: swizzles 128, 64, 32 and none,
K-major and MN-major, the leading and stride offsets, and K advanced by moving the start address inside a swizzled row.

    python tests/gpu/test_gpu_anchor.py      # without pytest: a table, and exit status 1 on a difference
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

if __name__ == "__main__":
    from run_all import make_importable

    SCRATCH = tempfile.TemporaryDirectory()
    make_importable(Path(SCRATCH.name))

from tests.helpers.cubin import Program, compile_cubin
from tests.helpers.walks import IMAGE_BYTES, Walk, expected, images, kernel_name, kernel_source, walks

Kernel = tuple[str, int, bool, bool]
KERNELS = sorted({walk.kernel for walk in walks()})


def missing() -> str:
    """Why nothing can be anchored here; empty if it can."""
    if not torch.cuda.is_available():
        return "no GPU"
    capability = torch.cuda.get_device_capability()
    return "" if capability == (9, 0) else f"wgmma is SM90's (this is {capability})"


def walks_of(kernel: Kernel) -> tuple[Walk, ...]:
    """The walks that one kernel runs."""
    return tuple(walk for walk in walks() if walk.kernel == kernel)


@cache
def measured(kernel: Kernel) -> list[tuple[Walk, NDArray[np.float32], NDArray[np.float32]]]:
    """(walk, what the GPU gave, what the model gives) of all walks of a kernel."""
    chosen = walks_of(kernel)
    held = images(chosen)
    words = np.array([walk.descriptors for walk in chosen], dtype=np.uint64).view(np.int64)
    out = torch.full((len(chosen), 64, kernel[1]), float("nan"), device="cuda")
    program = Program(compile_cubin(kernel_name(kernel), kernel_source(kernel), "sm90"))
    program.launch(
        kernel_name(kernel),
        len(chosen),
        128,
        IMAGE_BYTES,
        torch.from_numpy(held).cuda(),
        torch.from_numpy(words).cuda(),
        out,
    )
    results = out.cpu().numpy()
    return [(walk, got, expected(walk, image)) for walk, got, image in zip(chosen, results, held, strict=True)]


@pytest.mark.parametrize("kernel", KERNELS, ids=kernel_name)
def test_walk(kernel: Kernel) -> None:
    if reason := missing():
        pytest.skip(reason)
    wrong = [walk.name for walk, got, wanted in measured(kernel) if not np.array_equal(got, wanted)]
    assert not wrong, f"{len(wrong)} of {len(walks_of(kernel))} walks read other bytes: {wrong[:8]}"


def main() -> int:
    """Run all walks and print how many agree, by layout."""
    if reason := missing():
        print(f"test_gpu_anchor.py: {reason}; nothing was run", file=sys.stderr)
        return 2
    agree: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for kernel in KERNELS:
        for walk, got, wanted in measured(kernel):
            for side, operand in (("A", walk.a), ("B", walk.b)):
                major = "K-major" if operand.k_major else "MN-major"
                label = f"{side} {walk.dtype:5} {major:8} swizzle {operand.swizzle:3}"
                total[label] += 1
                agree[label] += np.array_equal(got, wanted)
            if not np.array_equal(got, wanted):
                print(f"differs: {walk}")
    for label in sorted(total):
        print(f"{label}: {agree[label]} of {total[label]} products bit for bit")
    print(f"{torch.cuda.get_device_name()}: {'all agree' if agree == total else 'DIFFERENCES'}")
    return int(agree != total)


if __name__ == "__main__":
    sys.exit(main())
