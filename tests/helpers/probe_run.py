"""Runs the programs of probes.py: on the emulator, or on a Blackwell GPU."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
import torch
from skimattn.codegen.parameter_block import aligned_block

from .cubin import Program as Cubin
from .cubin import compile_cubin
from .probes import (
    COLUMNS,
    LANES,
    SMEM_BYTES,
    THREADS,
    Image,
    Program,
    Words,
    differences,
    entry_source,
    fill,
    pack_steps,
)


def _name(dtype: str) -> str:
    return "probe_8_bit" if dtype == "e4m3" else "probe_16_bit"


def _tensors(chosen: tuple[Program, ...], images: Image, before: Words) -> dict[str, torch.Tensor]:
    """The tensors of a launch by field of the parameter block; all of one element size."""
    steps, counts, _ = pack_steps(chosen)
    return {
        "custom_mask": torch.from_numpy(images),
        "page_table": torch.from_numpy(before.view(np.int32)),
        "cu_seqlens_q": torch.from_numpy(steps),
        "cu_seqlens_k": torch.from_numpy(counts),
        "out": torch.full((len(chosen), LANES, COLUMNS), float("nan")),
    }


def _block(tensors: dict[str, torch.Tensor]) -> tuple[Any, Any]:
    block, owner = aligned_block()
    for name, tensor in tensors.items():
        setattr(block, name, tensor.data_ptr())
    block.len_q = tensors["cu_seqlens_q"].shape[1]
    return block, owner


@cache
def emulated(dtype: str) -> Any:
    """The probe kernel for 8- or 16-bit elements on the emulator."""
    from tests.emulator import compile_source

    return compile_source(_name(dtype), entry_source(_name(dtype), dtype))


def on_emulator(chosen: tuple[Program, ...], **options: Any) -> dict[str, int]:
    """Cells that differ from the model, by program; options go to the emulator."""
    images, before = fill(chosen)
    tensors = _tensors(chosen, images, before)
    block, owner = _block(tensors)
    emulated(chosen[0].dtype).launch(block, len(chosen), THREADS, SMEM_BYTES, **options)
    del owner
    return differences(chosen, images, before, tensors["out"].numpy().view(np.uint32))


def on_gpu(chosen: tuple[Program, ...], seed: int = 5) -> dict[str, int]:
    """The same on torch's current GPU."""
    images, before = fill(chosen, seed)
    tensors = {name: tensor.cuda() for name, tensor in _tensors(chosen, images, before).items()}
    block, owner = _block(tensors)
    name = _name(chosen[0].dtype)
    words = ctypes.string_at(ctypes.addressof(block), ctypes.sizeof(block))
    _loaded(name, chosen[0].dtype).launch(name, len(chosen), THREADS, SMEM_BYTES, words)
    del owner
    return differences(chosen, images, before, tensors["out"].cpu().numpy().view(np.uint32))


@cache
def _loaded(name: str, dtype: str) -> Cubin:
    return Cubin(compile_cubin(name, entry_source(name, dtype), "sm100"))
