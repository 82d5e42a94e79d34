"""The calls of flash-attn's functions that are compared with the oracle, on the CPU and, larger, on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch

from .flash_attn import Call, Seen

Arguments = dict[str, Any]
Mask = tuple[Arguments, Seen]

CAUSAL = Seen(right=0)
# What flash-attn is told, and what it means by that.
FA3_MASKS: list[Mask] = [
    ({}, Seen()),
    ({"window_size": [-1, -1]}, Seen()),
    ({"causal": True}, CAUSAL),
    ({"causal": True, "window_size": (-1, 7)}, CAUSAL),
    ({"causal": True, "window_size": [20, 5]}, Seen(20, 0)),
    ({"causal": True, "window_size": (20, -1)}, Seen(20, 0)),
    ({"window_size": (-1, 0)}, CAUSAL),
    ({"window_size": (30, 0)}, Seen(30, 0)),
    ({"window_size": (-1, 7)}, Seen(right=7)),
    ({"window_size": [11, -1]}, Seen(left=11)),
    ({"window_size": (3, 5)}, Seen(3, 5)),
    ({"window_size": (-7, 12)}, Seen(right=12)),
    ({"window_size": (0, 0)}, Seen(0, 0)),
    ({"causal": True, "attention_chunk": 32}, Seen(right=0, chunk=32)),
]
FA3_CHUNKS_IN_WINDOWS: list[Mask] = [
    ({"attention_chunk": 32}, Seen(chunk=32)),
    ({"attention_chunk": 1}, Seen(chunk=1)),
    ({"attention_chunk": 1000}, Seen(chunk=1000)),
    ({"attention_chunk": 32, "window_size": (-1, 6)}, Seen(right=6, chunk=32)),
    ({"attention_chunk": 48, "window_size": [9, -1]}, Seen(left=9, chunk=48)),
    ({"attention_chunk": 32, "window_size": (40, 3)}, Seen(40, 3, 32)),
    ({"attention_chunk": 48, "window_size": (9, 4), "causal": True}, Seen(9, 0, 48)),
    ({"attention_chunk": 32, "window_size": (-1, 0)}, Seen(right=0, chunk=32)),
]
FA4_MASKS: list[Mask] = [
    ({}, Seen()),
    ({"window_size": (None, None)}, Seen()),
    ({"window_size": (-1, -1)}, Seen()),
    ({"window_size": (-1, 0)}, Seen()),  # sides that add up to less than 0 are no window
    ({"window_size": [-3, 2]}, Seen()),
    ({"causal": True}, CAUSAL),
    ({"causal": True, "window_size": (None, 9)}, CAUSAL),
    ({"causal": True, "window_size": (-1, -1)}, CAUSAL),
    ({"causal": True, "window_size": (-3, 5)}, CAUSAL),
    ({"causal": True, "window_size": [20, None]}, Seen(20, 0)),
    ({"causal": True, "window_size": (20, 6)}, Seen(20, 0)),
    ({"window_size": (30, 0)}, Seen(30, 0)),
    ({"window_size": (None, 0)}, CAUSAL),
    ({"window_size": (None, 7)}, Seen(right=7)),
    ({"window_size": [11, None]}, Seen(left=11)),
    ({"window_size": (3, 5)}, Seen(3, 5)),
    ({"window_size": (0, 0)}, Seen(0, 0)),
]
HEADS = ((4, 2), (3, 3), (4, 1), (6, 2))
DIMS = ((64, 64), (128, 128), (64, 128), (96, 96), (192, 128), (40, 24))
SINKS = (None, torch.bfloat16, torch.float16, torch.float32)
SMALL = ((70, 130), (64, 128), (1, 1), (1, 130), (130, 70), (33, 33), (5, 1))
LARGE = ((1, 1), (64, 128), (1, 1025), (113, 203), (239, 1), (799, 3), (1023, 1024), (1024, 1023), (640, 128))


def _masks(face: str) -> list[Mask]:
    if face == "fa4":
        return FA4_MASKS
    return FA3_MASKS + FA3_CHUNKS_IN_WINDOWS


def batched_calls(face: str, every_lens: tuple[tuple[int, int], ...]) -> Iterator[Call]:
    """Every mask with every pair of lengths; heads, columns, types and the rest take turns."""
    for turn, ((arguments, seen), lens) in enumerate(product(_masks(face), every_lens)):
        yield Call(
            seen=seen,
            arguments=tuple(arguments.items()),
            lens=(lens,) * (1 + turn % 2),
            heads=HEADS[turn % len(HEADS)],
            dims=DIMS[turn // 3 % len(DIMS)],
            dtype=(torch.bfloat16, torch.float16)[turn // 2 % 2],
            softcap=15.0 if turn % 5 == 4 else 0.0,
            scale=0.3 if turn % 4 == 3 else None,
            sink=SINKS[turn % len(SINKS)] if face == "fa4" else None,
            face=face,
        )


def varlen_calls(face: str, longest: int) -> Iterator[Call]:
    """Every layout of q with every one of k and v, all or some rows and keys in use, and masks in turns."""
    rows = [longest // 3, 0, 1, longest, 5]
    keys = [longest, 7, longest // 2, 0, 5]
    kv_layouts = ("ragged", "batched", "paged") if face == "fa4" else ("ragged", "batched")
    masks = _masks(face)
    turn = 0
    for q_layout, kv_layout, *seqused in product(("ragged", "batched"), kv_layouts, (True, False), (True, False)):
        if kv_layout == "paged" and not seqused[1]:
            continue  # it is the only way to say how many keys there are
        for _ in range(3):
            turn += 1
            arguments, seen = masks[turn * 5 % len(masks)]
            yield Call(
                seen=seen,
                arguments=tuple(arguments.items()),
                lens=tuple(
                    zip(
                        rows if q_layout == "ragged" or seqused[0] else [longest] * 5,
                        keys if kv_layout == "ragged" or seqused[1] else [longest - 3] * 5,
                        strict=True,
                    )
                ),
                heads=HEADS[turn % len(HEADS)],
                dtype=(torch.bfloat16, torch.float16)[turn % 2],
                q_layout=q_layout,
                kv_layout=kv_layout,
                seqused=(seqused[0], seqused[1]),
                page_size=(16, 64)[turn % 2],
                sink=SINKS[turn % len(SINKS)] if face == "fa4" else None,
                face=face,
            )


def name(call: Call) -> str:
    """Of a test."""
    arguments = ",".join(f"{key}={value}" for key, value in call.arguments).replace(" ", "")
    layout = f"{call.q_layout}-{call.kv_layout}-{call.seqused[0]:d}{call.seqused[1]:d}" if call.varlen else call.lens[0]
    return f"{call.face}:{arguments}:{layout}:{call.heads}:{call.dims}".replace(" ", "")
