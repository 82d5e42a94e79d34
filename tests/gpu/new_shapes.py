"""Launches calls of ever new shapes, and compares every tensor map that a launch used with a second encoding.

``python tests/gpu/new_shapes.py SEED COUNT`` prints how many launches it made, or names the first map that differs. It
is one of the processes that ``test_gpu_new_shapes.py`` runs side by side.
"""

from __future__ import annotations

import ctypes
import random
import sys

import torch
from skimattn import Params, launch
from skimattn._cuda import driver
from skimattn._launch.signature import Bound, outline_of
from skimattn.codegen.parameter_block import OFFSETS, TENSOR_MAP_BYTES

HEADS, MOST = (4, 2), 2048


def encoded(tensor: torch.Tensor, box_rows: int) -> bytes:
    """The map over ``[rows, heads, 128]`` in bf16, straight from the driver, whose object lives until it was read."""
    cuda = driver.bindings()
    rows, heads, columns = tensor.shape
    row, head, _ = tensor.stride()
    dims, strides = (columns, rows, heads, 1), (2 * row, 2 * head, 2 * columns)
    kept = driver.call(
        "cuTensorMapEncodeTiled",
        cuda.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        4,
        tensor.data_ptr(),
        [cuda.cuuint64_t(size) for size in dims],
        [cuda.cuuint64_t(size) for size in strides],
        [cuda.cuuint32_t(size) for size in (64, box_rows, 1, 1)],
        [cuda.cuuint32_t(1)] * 4,
        cuda.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        cuda.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
        cuda.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        cuda.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    return ctypes.string_at(int(kept.getPtr()), TENSOR_MAP_BYTES)


def used(params: Params) -> dict[str, bytes]:
    """The maps in prefill's parameter block of the last launch of ``params``, whichever way it went."""
    bound = params._prepared
    if isinstance(bound, Bound):
        block = bound.prepared.blocks[0]
    else:
        shortcut = outline_of(params)[0].shortcut
        assert shortcut is not None
        (fitted,) = shortcut._fitted.values()
        block = fitted._blocks[0]
    return {
        name: ctypes.string_at(block.start + OFFSETS[name], TENSOR_MAP_BYTES) for name in OFFSETS if name[:4] == "tma_"
    }


def main(seed: int, count: int) -> int:
    """Ragged batches of two requests in random lengths, every shape but once in a while a new one."""
    choose = random.Random(seed)
    pool = torch.randn(MOST, HEADS[0] + 2 * HEADS[1], 128, device="cuda", dtype=torch.bfloat16)
    q, k, v = pool.split((HEADS[0], HEADS[1], HEADS[1]), 1)
    for index in range(count):
        # Shorter keys take smaller boxes, and fewer rows may be decode's.
        rows, keys = choose.randrange(257, MOST), choose.randrange(129, MOST)
        offsets = [
            torch.tensor([0, end // 2, end], dtype=torch.int32, device="cuda") if index % 64 == 0 else None
            for end in (rows, keys)
        ]
        if offsets[0] is None or offsets[1] is None:  # most calls: one request, whose offsets cost no copy
            tensors = (q[None, :rows], k[None, :keys], v[None, :keys])
            params = Params(*tensors, mask="causal")
        else:
            tensors = (q[:rows], k[:keys], v[:keys])
            params = Params(*tensors, cu_seqlens_q=offsets[0], cu_seqlens_k=offsets[1], mask="causal")
        out = launch(params)
        if index % 3 == 0:  # the second launch of an object goes the long way, and the third binds it
            launch(params)
            out = launch(params)
        if index == 0:
            continue  # the first of its form: launched by the long way, and not bound
        maps = used(params)
        assert isinstance(out, torch.Tensor)
        flat = [tensor if tensor.dim() == 3 else tensor[0] for tensor in (*tensors, out)]
        for name, tensor, box_rows in zip(("tma_q", "tma_k", "tma_v", "tma_o"), flat, (64, 128, 128, 64), strict=True):
            if maps[name] != encoded(tensor, box_rows):
                print(f"launch {index}: {name} differs from a second encoding of {list(tensor.shape)}")
                return 1
        if index % 512 == 0:
            torch.cuda.synchronize()
    torch.cuda.synchronize()
    print(count)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
