"""Deliberate mistakes in e4m3 prefill of SM90: in what V goes through, who waits for it, and what is multiplied out.

What is in front of a window, which no case poisons, tests/cpu/test_sm90_e4m3.py compares byte by byte.
"""

from __future__ import annotations

from dataclasses import replace

from tests.helpers.cases import Case

from .mutation import CONSUMER, EPILOGUE, RESULT, SOFTMAX, Mutation

TRANSPOSE, TRANSPOSED = "skimattn/sm90/transpose/kernel.cuh", "skimattn/core/transposed.cuh"

DENSE = Case(
    "mutation-e4m3",
    dtype="e4m3",
    descales="head",
    head_dim=128,
    head_dim_v=128,
    heads_q=4,
    heads_kv=2,
    skip="dense",
    pattern="none",
    lens=((200, 500), (200, 500)),
)
WIDE = replace(DENSE, name="mutation-e4m3-d256", head_dim=256, head_dim_v=256)
STAT = replace(DENSE, name="mutation-e4m3-stat", skip="stat", pattern="alternating", mask="full", lens=((200, 700),))
ALIBI = replace(STAT, name="mutation-e4m3-alibi", alibi=True, pattern="random")
RANDOM = replace(STAT, name="mutation-e4m3-d64", pattern="random", lens=((300, 1500),), head_dim=64, head_dim_v=64)
CAPPED = replace(STAT, name="mutation-e4m3-softcap", softcap=20.0, pattern="random")
NAN_BEHIND = replace(DENSE, name="mutation-e4m3-nan-behind", seqused=True, lens=((200, 471), (200, 530)))
WINDOW = replace(DENSE, name="mutation-e4m3-window", mask="window", window=(100, 0), kv_layout="nhd")
RAGGED = replace(
    DENSE, name="mutation-e4m3-ragged", q_layout="ragged", kv_layout="ragged", lens=((100, 400), (70, 300), (90, 120))
)
# One multiprocessor runs four of the CTAs that transpose: each has several tiles, one after the other.
DEEP = replace(DENSE, name="mutation-e4m3-deep", lens=((130, 2300),), heads_q=2)
SINKS = replace(DENSE, name="mutation-e4m3-sinks", sinks=True)

MUTATIONS_E4M3: tuple[Mutation, ...] = (
    # ---- V on its way to the workspace
    Mutation(
        "V transposed before it arrives",
        TRANSPOSE,
        "    ptx::mbarrier_wait_parity(&smem_.full, phase_);\n",
        "",
        DENSE,
        ("early-read", "race"),
    ),
    Mutation(
        "a phase that is waited for twice",
        TRANSPOSE,
        "    phase_ ^= 1;\n",
        "",
        DEEP,
        ("early-read", "race", "deadlock", "barrier"),
    ),
    Mutation(
        "columns written while the tile before them is copied out",
        TRANSPOSE,
        "    if (ptx::thread_index() == 0) ptx::tma_store_wait_read<0>();  // the",
        "    // the",
        DEEP,
        ("early-overwrite", "race"),
    ),
    Mutation(
        "columns written before all know that there is room",
        TRANSPOSE,
        "    phase_ ^= 1;\n    ptx::cta_sync();\n",
        "    phase_ ^= 1;\n",
        DEEP,
        ("early-overwrite", "race"),
    ),
    Mutation(
        "columns not made visible to the copy",
        TRANSPOSE,
        "    ptx::fence_proxy_async();\n",
        "",
        DENSE,
        ("fence", "race"),
    ),
    Mutation(
        "columns copied before all are written",
        TRANSPOSE,
        "    ptx::fence_proxy_async();\n    ptx::cta_sync();\n",
        "    ptx::fence_proxy_async();\n",
        DENSE,
        ("race", "early-overwrite", "early-read"),
    ),
    Mutation(
        "a CTA that ends before its last copy",
        TRANSPOSE,
        "    if (ptx::thread_index() == 0) ptx::tma_store_wait<0>();  // shared",
        "    // shared",
        DENSE,
        ("exit",),
    ),
    Mutation(
        "keys in their own order",
        TRANSPOSED,
        "return position / 4 * 2 + position % 2 + position % 4 / 2 * 8;",
        "return position;",
        DENSE,
        (RESULT,),
    ),
    Mutation(
        "halves of 16 keys swapped",
        TRANSPOSED,
        "position % 4 / 2 * 8;",
        "(1 - position % 4 / 2) * 8;",
        DENSE,
        (RESULT,),
    ),
    Mutation(
        "columns of four swapped",
        TRANSPOSE,
        "w[1] = ptx::prmt(low01, low23, 0x7632);\n    w[2] = ptx::prmt(high01, high23, 0x5410);",
        "w[2] = ptx::prmt(low01, low23, 0x7632);\n    w[1] = ptx::prmt(high01, high23, 0x5410);",
        DENSE,
        (RESULT,),
    ),
    Mutation(
        "NaN behind the last key copied",
        TRANSPOSE,
        "key >= seen.lo && key < seen.hi ? ptx::ld_shared(from) : 0",
        "key >= seen.lo ? ptx::ld_shared(from) : 0",
        NAN_BEHIND,
        (RESULT,),
    ),
    Mutation(
        "a tile too few transposed at a window's edge",
        TRANSPOSE,
        "seen.lo < Tr::kTileN && seen.hi > 0",
        "seen.lo <= 0 && seen.hi > 0",
        WINDOW,
        (RESULT,),
    ),
    Mutation(
        "a last tile that is not full left out",
        TRANSPOSE,
        "seen.lo < Tr::kTileN && seen.hi > 0",
        "seen.lo < Tr::kTileN && seen.hi >= Tr::kTileN",
        DENSE,
        (RESULT,),
    ),
    Mutation(
        "ragged requests that share a tile",
        TRANSPOSED,
        "return {offset / kTileN + batch, 0};",
        "return {offset / kTileN, 0};",
        RAGGED,
        (RESULT,),
    ),
    Mutation(
        "a ragged request taken for its neighbour",
        TRANSPOSE,
        "      if (first_tile(middle) <= at) {",
        "      if (first_tile(middle) < at) {",
        RAGGED,
        (RESULT, "out-of-bounds"),
    ),
    Mutation(
        "two columns' keys of a row swapped",
        TRANSPOSE,
        "const int part = column / Transposed<Tr>::kColumns;",
        "const int part = Transposed<Tr>::kParts - 1 - column / Transposed<Tr>::kColumns;",
        WIDE,
        (RESULT,),
    ),
    # ---- the product
    Mutation(
        "the columns of one half multiplied twice",
        CONSUMER,
        "advance(v, part * Tr::kTileN + i * kStepBytes)",
        "advance(v, i * kStepBytes)",
        WIDE,
        (RESULT,),
    ),
    Mutation(
        "words of P in the order of 16 bits",
        SOFTMAX,
        "      p[step / 2][step % 2 * 2 + r] = pack_word(Element{}, row);",
        "      p[step / 2][step % 2 + 2 * r] = pack_word(Element{}, row);",
        DENSE,
        (RESULT,),
    ),
    Mutation(
        "rows of P swapped",
        SOFTMAX,
        "{e[2 * r], e[2 * r + 1], e[2 * r + 4], e[2 * r + 5]}",
        "{e[2 - 2 * r], e[3 - 2 * r], e[6 - 2 * r], e[7 - 2 * r]}",
        DENSE,
        (RESULT,),
    ),
    Mutation(
        "a copy that announces too little",
        TRANSPOSED,
        "ptx::mbarrier_arrive_expect_tx(full, Transposed<Tr>::kTileBytes);",
        "ptx::mbarrier_arrive_expect_tx(full, Transposed<Tr>::kTileBytes / 2);",
        DENSE,
        ("barrier", "early-read", "race", "deadlock"),
    ),
    Mutation(
        "a tile's product added before it is done",
        CONSUMER,
        "    if constexpr (kPrev == PrevTile::kKept) finish_product(prev);\n    if constexpr (kSumsTiles) {",
        "    if constexpr (kSumsTiles) {",
        DENSE,
        ("register", "early-overwrite"),
    ),
    Mutation(
        "a product on top of that of the tile before",
        CONSUMER,
        "!kSumsTiles || i > 0);",
        "true);",
        DENSE,
        (RESULT,),
    ),
    Mutation(
        "the last product not added",
        CONSUMER,
        "      finish_product(prev);\n      add_products();\n",
        "      finish_product(prev);\n",
        DENSE,
        (RESULT,),
    ),
    Mutation(
        "the product before a skipped tile not added",
        CONSUMER,
        "        if constexpr (kPrev == PrevTile::kKept) add_products();\n",
        "",
        STAT,
        (RESULT,),
    ),
    Mutation(
        "a product added to what was not rescaled",
        CONSUMER,
        "o_[i] = fmaf(o_[i], kept_.acc_scale[Layout::row(i)], product_[i]);",
        "o_[i] += product_[i];",
        DENSE,
        (RESULT,),
    ),
    # ---- what is multiplied out
    Mutation(
        "probabilities that are not raised",
        SOFTMAX,
        "base[r] = update.base[r] - kGain<Element>;",
        "base[r] = update.base[r];",
        DENSE,
        (RESULT,),
    ),
    Mutation(
        "probabilities computed ahead not raised",
        CONSUMER,
        "ahead.compute(s, update.base[0] - kGain<Element>, scale_log2());",
        "ahead.compute(s, update.base[0], scale_log2());",
        RANDOM,
        (RESULT,),
    ),
    Mutation(
        "sums in 256ths beside a sink",
        EPILOGUE,
        "const float sum = quad_sum(rows.sum[r]) * kSumUnit<Element>;",
        "const float sum = quad_sum(rows.sum[r]);",
        SINKS,
        (RESULT,),
    ),
    Mutation(
        "V's descale left out",
        EPILOGUE,
        "kSumUnit<Element> * v_descale(p, at.batch, at.head / (p.heads_q / p.heads_kv))",
        "kSumUnit<Element>",
        DENSE,
        (RESULT,),
    ),
    Mutation(
        "V's descale of another head",
        EPILOGUE,
        "v_descale(p, at.batch, at.head / (p.heads_q / p.heads_kv))",
        "v_descale(p, at.batch, at.head % p.heads_kv)",
        DENSE,
        (RESULT,),
    ),
    Mutation(
        "descales of scores left out",
        EPILOGUE,
        "return kDescaled<Element> && !Tr::kSoftcap ? p.scale_log2 * unit : p.scale_log2;",
        "return p.scale_log2;",
        STAT,
        (RESULT,),
    ),
    Mutation(
        "descales outside the softcap",
        CONSUMER,
        "return kScaled ? p_.score_scale * unit_ : p_.score_scale;",
        "return p_.score_scale;",
        CAPPED,
        (RESULT,),
    ),
    Mutation(
        "a slope scaled with the scores",
        CONSUMER,
        "    if constexpr (Tr::kAlibi && !Tr::kSoftcap) at_.alibi /= unit_;\n",
        "",
        ALIBI,
        (RESULT,),
    ),
)
