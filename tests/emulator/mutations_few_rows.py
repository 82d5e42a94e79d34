"""Deliberate mistakes in decode over 8-bit keys and values, groups of few rows, whose operands are swapped."""

from __future__ import annotations

from dataclasses import replace

from .mutation import RESULT, Mutation
from .mutation_decode import CONSUMER, FOLDER, OPERANDS, STORAGE
from .mutations_decode_e4m3 import DENSE as MANY

SWAPPED, FRAGMENTS, QUERIES = (
    f"{FOLDER}/{name}.cuh" for name in ("swapped_consumer", "swapped_operands", "query_tile")
)

DENSE = replace(MANY, name="mutation-few-rows", heads_q=8)
# 12 rows and 64 in turn.
BOTH = replace(
    DENSE,
    name="mutation-few-rows-and-many",
    lens=((3, 700), (16, 700), (3, 200)),
    q_layout="ragged",
    kv_layout="ragged",
)
NAN_BEHIND = replace(DENSE, name="mutation-few-rows-nan-behind", seqused=True, lens=((3, 1171), (3, 1230)))
STAT = replace(
    NAN_BEHIND, name="mutation-few-rows-stat", skip="stat", pattern="random_rows", lens=((3, 1200), (3, 700))
)
SEVENTEEN = replace(DENSE, name="mutation-seventeen-rows", heads_q=17, heads_kv=1, lens=((1, 300),))
_BARRIER = "    ptx::bar_sync(kWrittenBarrier, kGroupThreads);\n"

MUTATIONS_FEW_ROWS: tuple[Mutation, ...] = (
    Mutation(
        "maxima read before all warps have left theirs",
        FRAGMENTS,
        _BARRIER,
        "",
        DENSE,
        ("race", "early-overwrite", "fence"),
    ),
    Mutation("maxima left where those before are read", FRAGMENTS, "    turn_ ^= 1;\n", "", DENSE, ("race",)),
    Mutation(
        "P multiplied before all have written theirs",
        SWAPPED,
        "  SKIM_DEVICE void begin_values() {\n    rings_.written();\n",
        "  SKIM_DEVICE void begin_values() {\n",
        DENSE,
        ("race", "early-overwrite", "fence"),
    ),
    Mutation(
        "Q multiplied before all have written theirs",
        SWAPPED,
        "    rings_.written();\n    if constexpr (QueryTile",
        "    if constexpr (QueryTile",
        DENSE,
        ("race", "fence"),
    ),
    Mutation(
        "what was written not made visible to products",
        OPERANDS,
        "    ptx::fence_proxy_async();\n" + _BARRIER,
        _BARRIER,
        DENSE,
        ("race", "fence"),
    ),
    Mutation(
        "K handed back before registers hold it",
        SWAPPED,
        "    keys_.load(rings_.k_slot());\n    rings_.release_k();\n",
        "    const uint8_t* slot = rings_.k_slot();\n    rings_.release_k();\n    keys_.load(slot);\n",
        DENSE,
        ("race", "early-overwrite", "early-read"),
    ),
    Mutation("K taken before it arrives", SWAPPED, "    rings_.await_k();\n", "", DENSE, ("early-read", "race")),
    Mutation("V taken before it arrives", SWAPPED, "    rings_.await_v();\n", "", DENSE, ("early-read", "race")),
    Mutation(
        "K never handed back",
        SWAPPED,
        "    keys_.load(rings_.k_slot());\n    rings_.release_k();\n",
        "    keys_.load(rings_.k_slot());\n",
        DENSE,
        ("deadlock", RESULT),
    ),
    Mutation(
        "scores read without wgmma_wait",
        SWAPPED,
        "    if (pending_) load_values();\n    ptx::wgmma_wait<0>();\n",
        "    if (pending_) load_values();\n",
        DENSE,
        ("register",),
    ),
    Mutation(
        "output rescaled before the product is done",
        SWAPPED,
        "      next_keys();\n      ptx::wgmma_wait<0>();\n",
        "      next_keys();\n",
        DENSE,
        ("register", "early-overwrite", "race", "fence"),
    ),
    Mutation(
        "no wgmma_fence before the scores",
        SWAPPED,
        "    ptx::wgmma_fence();\n#pragma unroll\n    for (int part = 0; part < Keys::kParts",
        "#pragma unroll\n    for (int part = 0; part < Keys::kParts",
        DENSE,
        ("fence",),
    ),
    Mutation(
        "no wgmma_fence before the values",
        SWAPPED,
        "    ptx::wgmma_fence();\n#pragma unroll\n    for (int i = 0; i < Values::kSteps",
        "#pragma unroll\n    for (int i = 0; i < Values::kSteps",
        DENSE,
        ("fence",),
    ),
    Mutation(
        "units of rows left where values before are still read",
        SWAPPED,
        "QueryTile<Tr>::write(smem_, tiles_.q, tiles_.q_unit, thread_);",
        "QueryTile<Tr>::write(smem_, tiles_.q, reinterpret_cast<float*>(smem_.converted_v) + 128, thread_);",
        BOTH,
        ("race", RESULT),
    ),
    Mutation(
        "half the places that votes need",
        STORAGE,
        "Panels::kConvertsKv ? 4 :",
        "Panels::kConvertsKv ? 2 :",
        STAT,
        ("race",),
    ),
    Mutation(
        "values that no row sees are kept",
        FRAGMENTS,
        "if (key + key_ + k < seen.lo || key + key_ + k >= seen.hi) word[k] = 0;",
        "",
        NAN_BEHIND,
        (RESULT,),
    ),
    Mutation("rows' units left out", SWAPPED, "s[part][i] *= q_unit_[SwappedScores::row(i)]", "", DENSE, (RESULT,)),
    Mutation("sums of another unit than P", SWAPPED, "sums[r] * kUnitP", "sums[r]", DENSE, (RESULT,)),
    Mutation("17 rows taken for 16", CONSUMER, "> kSwappedRows)", "> kSwappedRows + 1)", SEVENTEEN, (RESULT,)),
)
