"""Deliberate mistakes in custom masks over the last keys: where column 0 is, which tiles need no mask, what is read."""

from __future__ import annotations

from dataclasses import replace

from .mutation import DENSE, MASK, RESULT, TILES, Mutation
from .mutation_decode import DENSE as DENSE_DECODE
from .mutation_decode import DecodeMutation

_SCORES = "skimattn/core/score_mod.cuh"
# Dense: in a skipped tile a key more or less would not show. Column 0 is no multiple of 32, and its tile not the last.
LAST = replace(DENSE, name="mutation-last-keys", mask="custom", custom="bool3", custom_keys=201, lens=((200, 700),))
SHORT = replace(LAST, name="mutation-last-keys-short", lens=((200, 150),))
TREE = replace(
    DENSE_DECODE,
    name="mutation-last-keys-decode",
    mask="custom",
    custom="bool3",
    custom_keys=75,
    kv_layout="nhd",
    page_size=16,
    lens=((2, 1300), (2, 700)),
)
LAST_SM100, TREE_SM100 = (replace(case, name=f"{case.name}-sm100", arch="sm100") for case in (LAST, TREE))
_ORIGIN = "p.custom_keys > 0 ? len_k - p.custom_keys : 0;"
_CLEAN = "imax(first_masked_key(len_k, p), 0) / kTileN;"

MUTATIONS_LAST_KEYS: tuple[Mutation, ...] = (
    *(
        kind(name, header, old, new, case, (RESULT,))
        for kind, cases in ((Mutation, (LAST, LAST_SM100)), (DecodeMutation, (TREE, TREE_SM100)))
        for case in cases
        for name, header, old, new in (
            ("column 0 one key late", MASK, _ORIGIN, "p.custom_keys > 0 ? len_k - p.custom_keys + 1 : 0;"),
            ("tile of column 0 not masked", TILES, _CLEAN, "ceil_div(imax(first_masked_key(len_k, p), 0), kTileN);"),
        )
    ),
    Mutation(
        "column 0 one key early", MASK, _ORIGIN, "p.custom_keys > 0 ? len_k - p.custom_keys - 1 : 0;", LAST, (RESULT,)
    ),
    Mutation(
        "mask of a short request from column 0 on", MASK, _ORIGIN, "imax(len_k - p.custom_keys, 0);", SHORT, (RESULT,)
    ),
    Mutation("second word left out", _SCORES, "static_cast<uint64_t>(next) << 32 | first", "first", LAST, (RESULT,)),
    Mutation(
        "keys before the mask hidden",
        _SCORES,
        "  if (index < 0) return ~0u;\n",
        "  if (index < 0) return 0;\n",
        LAST,
        (RESULT,),
    ),
    Mutation(
        "mask read past its rows",
        _SCORES,
        "index >= ceil_div(columns, 32)",
        "index > ceil_div(columns, 32)",
        LAST,
        ("out-of-bounds",),
    ),
)
