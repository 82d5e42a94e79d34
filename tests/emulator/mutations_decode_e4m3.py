"""Deliberate mistakes in decode over 8-bit keys and values, groups of many rows: orders of conversions and products."""

from __future__ import annotations

from dataclasses import replace

from tests.helpers.cases import Case

from .mutation import RESULT, Mutation

OPERANDS, CONVERT = "skimattn/sm90/decode/operands.cuh", "skimattn/sm90/decode/convert.cuh"
CONSUMER = "skimattn/sm90/decode/consumer.cuh"

DENSE = Case(
    "mutation-e4m3-cache",
    phase="decode",
    kv_dtype="e4m3",
    descales="head",
    head_dim=128,
    head_dim_v=128,
    heads_q=16,
    heads_kv=2,
    skip="dense",
    pattern="none",
    lens=((3, 1200), (3, 1200)),
)
NAN_BEHIND = replace(DENSE, name="mutation-e4m3-cache-nan-behind", seqused=True, lens=((3, 1171), (3, 1230)))

MUTATIONS_DECODE_E4M3: tuple[Mutation, ...] = (
    Mutation(
        "keys multiplied before all have converted theirs",
        OPERANDS,
        "  SKIM_DEVICE uint64_t keys() {\n    this->written();\n    return k_major(smem_.converted_k);",
        "  SKIM_DEVICE uint64_t keys() {\n    return k_major(smem_.converted_k);",
        DENSE,
        ("race", "early-overwrite", "fence"),
    ),
    Mutation(
        "values multiplied before all have converted theirs",
        OPERANDS,
        "  SKIM_DEVICE void scored() { this->written(); }",
        "  SKIM_DEVICE void scored() {}",
        DENSE,
        ("race", "early-overwrite", "fence"),
    ),
    Mutation(
        "converted bytes not made visible to products",
        OPERANDS,
        "    ptx::fence_proxy_async();\n    ptx::bar_sync(kWrittenBarrier, kGroupThreads);",
        "    ptx::bar_sync(kWrittenBarrier, kGroupThreads);",
        DENSE,
        ("race", "fence"),
    ),
    Mutation(
        "a leaf's last values converted over those that others still multiply",
        OPERANDS,
        "  SKIM_DEVICE void before_last_values(const Span& seen) {\n    this->written();\n",
        "  SKIM_DEVICE void before_last_values(const Span& seen) {\n",
        DENSE,
        ("race", "early-overwrite"),
    ),
    Mutation(
        "a leaf's last values multiplied before all have converted theirs",
        OPERANDS,
        "    convert_values(seen);\n    this->written();\n",
        "    convert_values(seen);\n",
        DENSE,
        ("race", "fence"),
    ),
    Mutation(
        "keys converted before they arrive",
        OPERANDS,
        "    --keys_left_;\n    this->await_k();\n",
        "    --keys_left_;\n",
        DENSE,
        ("early-read", "race"),
    ),
    Mutation(
        "values converted before they arrive",
        OPERANDS,
        "  SKIM_DEVICE void convert_values(const Span& seen) {\n    this->await_v();\n",
        "  SKIM_DEVICE void convert_values(const Span& seen) {\n",
        DENSE,
        ("early-read", "race"),
    ),
    Mutation(
        "a slot of keys never handed back",
        OPERANDS,
        "smem_.converted_k, {});\n    this->release_k();",
        "smem_.converted_k, {});\n    this->k_.advance();",
        DENSE,
        ("deadlock",),
    ),
    Mutation(
        "a leaf's last product takes the keys after the next ones",
        CONSUMER,
        "      multiply_values<false>();",
        "      multiply_values<true>();",
        DENSE,
        (RESULT, "deadlock"),
    ),
    Mutation(
        "values that no row sees are kept",
        CONVERT,
        "if (kClears && (row < seen.lo || row >= seen.hi)) chunks[i] = {};",
        "",
        NAN_BEHIND,
        (RESULT,),
    ),
    Mutation(
        "halves of a row's 16 columns swapped",
        CONVERT,
        "rows + to_, rows + (to_ ^ kChunkBytes)",
        "rows + (to_ ^ kChunkBytes), rows + to_",
        DENSE,
        (RESULT,),
    ),
)
