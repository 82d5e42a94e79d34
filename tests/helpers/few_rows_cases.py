"""Decode over 8-bit caches by how many rows a group has: up to 16 are multiplied another way than more of them are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .cases import Case
from .decode_cases import decode_pattern_cases

# What 12 rows see, next to those of 40, 64 and of 64 and 16; the same requests in every case that says so.
LENS = ((3, 700), (10, 513), (16, 1030), (20, 1290), (1, 40), (2, 0))
_BASE = Case(
    name="",
    phase="decode",
    kv_dtype="e4m3",
    descales="head",
    head_dim=128,
    head_dim_v=128,
    heads_q=1,
    pattern="random_rows",
    lens=((1, 1171),),
    seqused=True,
)
RAGGED = replace(
    _BASE, name="few-rows-ragged", heads_q=4, lens=LENS, q_layout="ragged", kv_layout="ragged", pattern="random"
)
# Exact powers of two between them: see test_size_of_queries_does_not_show.
SIZES = replace(_BASE, name="few-rows-sizes", heads_q=8, lens=((2, 600),), scale=2.0**-4)


def few_rows_cases() -> tuple[Case, ...]:
    """Groups of 1 to 64 rows, and one of 16 behind one of 64; every mask, type and number of columns."""
    d64, d256 = ({"head_dim": dim, "head_dim_v": dim} for dim in (64, 256))
    paged: dict[str, Any] = {"kv_layout": "nhd", "page_size": 16, "seqused": False, "q_layout": "ragged"}
    window: dict[str, Any] = {"mask": "window", "window": (700, 0)}
    cases = {
        "1": _BASE,
        "4": replace(_BASE, heads_q=4, lens=((1, 1290), (1, 63)), **d64, dtype="fp16", **window, **paged),
        "8": replace(_BASE, heads_q=4, lens=((2, 700), (2, 1)), mask="chunked", chunk=300, **d256, **paged),
        "16": replace(_BASE, heads_q=16, mask="full", skip="skip", threshold_kind="head", thresholds=(1e-3, 1e-2)),
        "17": replace(_BASE, heads_q=17, threshold_kind="head"),
        "64": replace(_BASE, heads_q=8, lens=((8, 1200), (8, 100)), skip="dense"),
        "64-and-16": replace(_BASE, heads_q=20, lens=((4, 1300),), **paged),
        "16-blind": replace(_BASE, heads_q=1, lens=((16, 9),), sinks=True, **window),
        "custom-64": replace(_BASE, heads_q=4, lens=((4, 1100), (4, 70)), mask="custom", custom="packed4", **d64),
        "custom-heads": replace(_BASE, heads_q=8, lens=((2, 900),), mask="custom", custom="packed4", skip="dense"),
        "tree-256": replace(_BASE, heads_q=2, lens=((8, 700),), mask="custom", custom="bool3", custom_keys=45, **d256),
        "softcap": replace(_BASE, heads_q=4, lens=((2, 700),), softcap=20.0, alibi=True, dtype="fp16", sinks=True),
        "alibi-64": replace(_BASE, heads_q=4, lens=((4, 1300),), alibi=True, skip="dense", **d64),
        "80": replace(_BASE, heads_q=4, lens=((3, 700),), head_dim=80, head_dim_v=112, mask="full"),
        "24-64": replace(_BASE, heads_q=8, lens=((3, 1100),), dtype="fp16", **d64, **window),
        "24-256": replace(_BASE, heads_q=8, lens=((3, 600),), **d256, **paged),
        "24-bytes-256": replace(_BASE, heads_q=8, lens=((3, 500),), dtype="e4m3", kv_dtype="same", **d256),
        "bytes": replace(_BASE, heads_q=16, lens=((1, 900),), dtype="e4m3", kv_dtype="same", **window),
        "bytes-64": replace(_BASE, heads_q=4, lens=((4, 1100),), dtype="e4m3", kv_dtype="same", **d64),
    }
    return tuple(replace(case, name=f"few-rows-{name}", seed=index) for index, (name, case) in enumerate(cases.items()))


def few_rows_pattern_cases() -> tuple[Case, ...]:
    """Patterns that must drop tiles, for a group of 8 rows and of 28 beside it."""
    chosen = [case for case in decode_pattern_cases() if case.q_layout == "batched"][::3]
    return tuple(
        replace(
            case,
            name=f"{case.name}-bytes",
            kv_dtype="e4m3",
            lens=((2, 1000), (7, 1000)),
            q_layout="ragged",
            kv_layout="ragged",
        )
        for case in chosen
    )
