"""Deliberate mistakes in what a kernel computes: no rule of the machine is broken, the answer is wrong."""

from __future__ import annotations

from .mutation import (
    CAUSAL,
    CHUNKED,
    CONSUMER,
    DENSE,
    KEY_TILES,
    MASK,
    PAGED,
    RAGGED,
    RANDOM_128,
    RESULT,
    SCHEDULER,
    SKIP,
    SKIP_STATS,
    SOFTMAX,
    STAT,
    TILES,
    WINDOW,
    Mutation,
)

WRONG_ANSWERS: tuple[Mutation, ...] = (
    Mutation(
        "output not rescaled", SOFTMAX, "o[i] *= update.acc_scale[Layout::row(i)];", "o[i] *= 1.0f;", STAT, (RESULT,)
    ),
    Mutation(
        "exponentials ahead of the vote measured from the other row's maximum",
        CONSUMER,
        "ahead.compute(s, update.base[0] -",
        "ahead.compute(s, update.base[1] -",
        RANDOM_128,
        (RESULT,),
    ),
    Mutation("invalid rows vote", CONSUMER, "!at_.valid(r) | row_can_skip(", "row_can_skip(", RAGGED, (RESULT,)),
    Mutation(
        "causal mask one key too far",
        MASK,
        "return {0, imin(diagonal + 1, len_k)};",
        "return {0, imin(diagonal + 2, len_k)};",
        DENSE,
        (RESULT,),
    ),
    Mutation(
        "window one key short on the left",
        MASK,
        "? 0 : diagonal - p.window_left;",
        "? 0 : diagonal - p.window_left + 1;",
        WINDOW,
        (RESULT,),
    ),
    Mutation(
        "window of a chunk open to the left",
        MASK,
        "return {imax(start, diagonal - p.window_left),",
        "return {start,",
        CHUNKED,
        (RESULT,),
    ),
    Mutation(
        "window of a chunk leaves it",
        MASK,
        "imin(start + p.chunk_size, diagonal + p.window_right + 1)",
        "diagonal + p.window_right + 1",
        CHUNKED,
        (RESULT,),
    ),
    Mutation(
        "wrong page",
        KEY_TILES,
        "ptx::ld_global(pages_ + key_of(box, p) / p.page_size)",
        "ptx::ld_global(pages_ + key0_ / p.page_size)",
        PAGED,
        (RESULT,),
    ),
    Mutation(
        "page table read past the request",
        KEY_TILES,
        "keys.batch) * p.page_table_stride",
        "keys.batch + 1) * p.page_table_stride",
        PAGED,
        (RESULT, "out-of-bounds"),
    ),
    Mutation(
        "tail of V not cleared",
        CONSUMER,
        "    if (Storage::kTransposedV || (seen.lo <= 0 && seen.hi >= Tr::kTileN)) return;\n",
        "    return;\n",
        PAGED,
        (RESULT,),
    ),
    Mutation("running maximum not kept", CONSUMER, "    rows_ = raised;\n", "", STAT, (RESULT,)),
    Mutation(
        "threshold not limited to one", SKIP, "threshold < 1.0f ? log2f(threshold) : 0.0f", "8.0f", STAT, (RESULT,)
    ),
    Mutation(
        "visible tile past the diagonal left out",
        TILES,
        "ceil_div(bottom.hi, kTileN), 0, 0}",
        "bottom.hi / kTileN, 0, 0}",
        DENSE,
        (RESULT,),
    ),
    Mutation(
        "a group's count takes in its neighbour's tiles",
        SKIP_STATS,
        "        if (n < first(group) || n >= last(group)) continue;\n",
        "",
        CAUSAL,
        (RESULT,),
    ),
    Mutation(
        "kept and skipped swapped in the skip map", SKIP_STATS, "(kept ? 1 : 2)", "(kept ? 2 : 1)", STAT, (RESULT,)
    ),
    Mutation("skipped tiles not counted", SKIP_STATS, "skipped_ += kept ? 0 : 1;", "", STAT, (RESULT,)),
    Mutation("work counter not reset", SCHEDULER, "ptx::st_global(counter_, 0u)", "", DENSE, (RESULT,)),
    Mutation("work counter reset too early", SCHEDULER, "count + 2 * ptx::grid_size()", "count + 1", STAT, (RESULT,)),
)
