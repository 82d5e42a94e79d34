"""What is launched on lent GPUs compiles here first."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.cubin import compile_cubin
from tests.helpers.descriptors import sm90_descriptor
from tests.helpers.placement import addresses
from tests.helpers.probes import entry_source
from tests.helpers.walks import IMAGE_BYTES, ROWS, expected, images, kernel_name, kernel_source, walks

KERNELS = sorted({walk.kernel for walk in walks()})


@pytest.mark.parametrize("kernel", KERNELS[:: len(KERNELS) // 4], ids=kernel_name)
def test_walk_kernels_compile(kernel: tuple[str, int, bool, bool]) -> None:
    assert compile_cubin(kernel_name(kernel), kernel_source(kernel), "sm90")[:4] == b"\x7fELF"


@pytest.mark.parametrize("dtype", ["bf16", "e4m3"])
def test_tcgen05_probes_compile(dtype: str) -> None:
    assert compile_cubin("probe", entry_source("probe", dtype), "sm100")[:4] == b"\x7fELF"


def test_walks_stay_inside_the_image() -> None:
    for walk in walks():
        for operand, start, rows in ((walk.a, walk.a_start, ROWS), (walk.b, walk.b_start, walk.n)):
            where = addresses(operand, start, rows, walk.depth)
            assert where.min() >= 0 and where.max() + operand.element_bytes <= IMAGE_BYTES, walk
            assert len(np.unique(where)) == where.size, f"two elements of an operand share bytes: {walk}"
            assert sm90_descriptor(operand, start) >> 16 & 0x3FFF == operand.leading >> 4


def test_walks_tell_layouts_apart() -> None:
    """Random images: no two layouts give one result, so that a result says which bytes were read."""
    chosen = tuple(walk for walk in walks() if walk.kernel == ("bf16", 64, False, False))
    image = images(chosen[:1])[0]
    layouts = {(walk.a, walk.a_start, walk.b, walk.b_start): walk for walk in chosen}
    where = {tuple(addresses(walk.a, walk.a_start, 64, 16).ravel()[::7]) for walk in layouts.values()}
    assert len({expected(walk, image).tobytes() for walk in layouts.values()}) >= len(where) > 8
