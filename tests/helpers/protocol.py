"""Every pattern of skips of two row groups over a few key tiles, as heads of one call: it explores a kernel's protocol.

Head h has its own pattern; the heads share K and V. With fewer CTAs than heads, every CTA passes from one pattern to
the next, so that what a pattern leaves behind in rings and phases meets another one.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from .cases import Case, Content, contents
from .oracle import KEPT, SKIPPED
from .patterns import BLOCKS_PER_TILE, LOW, plant_keys, plant_queries

Bits = NDArray[np.bool_]  # [groups, tiles]: which tiles a group must skip
GROUPS = 2


@cache
def skip_patterns(tiles: int, most: int = 0, seed: int = 0) -> tuple[Bits, ...]:
    """All patterns of two groups: any tiles but the first, which is visited first; ``most`` of them drawn, if given."""
    rows = [(False, *rest) for rest in product((False, True), repeat=tiles - 1)]
    found = [np.array(pair) for pair in product(rows, repeat=GROUPS)]
    if most and most < len(found):
        found = random.Random(seed).sample(found, most)
    return tuple(found)


def protocol_case(patterns: tuple[Bits, ...], keys_of_last: int = 128, **changes: object) -> tuple[Case, list[Content]]:
    """A call whose head h must skip as ``patterns[h]``, and its content. The last tile holds ``keys_of_last`` keys."""
    tiles = patterns[0].shape[1]
    case = Case(
        f"protocol-{tiles}",
        arch="sm100",
        mask="full",
        pattern="none",
        heads_q=len(patterns),
        heads_kv=1,
        q_layout="ragged",
        kv_layout="ragged",
    )
    case = replace(case, **changes)  # type: ignore[arg-type]
    case = replace(case, lens=((GROUPS * case.group_rows, (tiles - 1) * case.tile_n + keys_of_last),))
    held = contents(case)
    one = held[0]
    keys = one.k.double().numpy()
    plant_keys(keys, case.tile_n)
    queries = one.q.double().numpy()
    for head, low in enumerate(patterns):
        by_row = np.repeat(np.where(low, LOW, 0.0), case.group_rows, axis=0)
        bias = np.repeat(by_row, BLOCKS_PER_TILE, axis=1)
        plant_queries(queries[:, head], bias, case.softmax_scale, len(keys), case.tile_n)
    for tensor, values in ((one.q, queries), (one.k, keys)):
        tensor.copy_(torch.from_numpy(values))
    return case, held


def expected_map(patterns: tuple[Bits, ...]) -> NDArray[np.uint8]:
    """[heads, groups, tiles]: what the call must decide."""
    return np.where(np.stack(patterns), SKIPPED, KEPT).astype(np.uint8)
