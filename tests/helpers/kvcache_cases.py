"""The calls of ``flash_attn_with_kvcache`` that are compared with the oracle, on the CPU and, larger, on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch

from .flash_attn import Seen
from .kvcache import Step

CAUSAL = Seen(right=0)
MASKS: list[tuple[dict[str, Any], Seen]] = [
    ({}, Seen()),
    ({"causal": True}, CAUSAL),
    ({"causal": True, "window_size": (20, 9)}, Seen(20, 0)),
    ({"window_size": [9, 2]}, Seen(9, 2)),
    ({"window_size": (-1, 3)}, Seen(right=3)),
    ({"causal": True, "attention_chunk": 16}, Seen(right=0, chunk=16)),
    ({"attention_chunk": 24}, Seen(chunk=24)),
]
# How the requests lie in the caches. 48 and 3 are page sizes that kernels have and have not.
PLACES: list[dict[str, Any]] = [
    {},
    {"layout": "heads first"},
    {"layout": "longer"},
    {"layout": "together"},
    {"indexed": True},
    {"indexed": True, "layout": "longer"},
    {"page_size": 16},
    {"page_size": 48, "layout": "heads first"},
    {"page_size": 16, "indexed": True, "layout": "together"},
    {"page_size": 3},
    {"page_size": 24, "layout": "longer"},
]
ROTATIONS: list[dict[str, Any]] = [
    {},
    {"rotary_dim": 64},
    {"rotary_dim": 32, "interleaved": False},
    {"rotary_dim": 16},
    {"rotary_dim": 64, "interleaved": False, "rotary_seqlens": (0, 40, 3)},
]
# Rows of q, keys in the cache and new ones; the last of all reaches the end of its cache.
ROWS: list[dict[str, Any]] = [
    {},
    {"rows": (1, 1, 1), "new": None},
    {"rows": (3, 3, 3), "cached": (0, 1, 0), "new": (3, 3, 3), "fills": True},
    {"rows": (2, 5, 1), "ragged_q": True, "new": (4, 4, 4), "fills": True},
    {"rows": (4, 4, 4), "new": (0, 7, 2), "ragged_new": True},
    {"rows": (1, 6, 3), "new": (6, 0, 1), "ragged_q": True, "ragged_new": True, "fills": True},
    {"rows": (70, 70, 70), "new": (2, 2, 2)},
]
LEFTPADS = [(0, 5, 31), (11, 0, 2), (50, 7, 0)]


def steps(capacity: int = 96, grow: int = 1) -> Iterator[Step]:
    """Every place with every number of rows, with and without padding; masks, rotations and types take turns.

    ``grow``: by what factor there are more keys and room for them.
    """
    for turn, (place, rows, padded) in enumerate(product(PLACES, ROWS, (False, True))):
        arguments, seen = MASKS[turn % len(MASKS)]
        options = {**place, **rows}
        fills = options.pop("fills", False)
        room = capacity * grow
        if options.get("indexed") and not options.get("page_size") and turn % 2:
            room -= 6  # no multiple of any page but the smallest
        cached = [length * grow for length in options.pop("cached", (50, 7, 33))]
        new = options.get("new", (1, 1, 1))
        if fills and new:
            cached[2] = room - new[2]
        if padded:
            pads = LEFTPADS[turn // 2 % len(LEFTPADS)]
            options["leftpad"] = tuple(min(pad * grow, n) for pad, n in zip(pads, cached, strict=True))
        if new is not None:
            options |= ROTATIONS[turn % len(ROTATIONS)]
        if turn % 3 == 0:
            arguments = {**arguments, "softcap": 12.0, "softmax_scale": 0.2}
        yield Step(
            seen=seen,
            arguments=tuple(arguments.items()),
            cached=tuple(cached),
            capacity=room,
            heads=((4, 2), (3, 3), (8, 1))[turn % 3],
            dims=((64, 64), (128, 64), (96, 96))[turn // 2 % 3],
            dtype=(torch.bfloat16, torch.float16)[turn % 2],
            **options,
        )


def name(step: Step) -> str:
    """Of a test."""
    plain = Step()
    parts = [
        f"{item}={getattr(step, item)}"
        for item in ("page_size", "indexed", "layout", "leftpad", "rows", "new", "cached", "rotary_dim", "arguments")
        if getattr(step, item) != getattr(plain, item)
    ]
    return ",".join(parts).replace(" ", "").replace("'", "") or "plain"
