"""Deliberate mistakes in the SM100 decode kernels: signals between their warps, fences, and what they compute."""

from __future__ import annotations

from dataclasses import replace

from tests.helpers.cases import Case

from .mutation import RESULT, Mutation

FOLDER = "skimattn/sm100/decode"
MMA, SOFTMAX, CORRECTION = f"{FOLDER}/mma_warp.cuh", f"{FOLDER}/softmax.cuh", f"{FOLDER}/correction.cuh"
STORAGE, FEEDER = f"{FOLDER}/storage.cuh", "skimattn/core/decode_feeder.cuh"

DENSE = Case(
    "mutation100-decode",
    arch="sm100",
    phase="decode",
    head_dim=128,
    head_dim_v=128,
    heads_q=8,
    heads_kv=2,
    skip="dense",
    pattern="first",
    mask="full",
    lens=((3, 1500), (3, 1500)),
)
RISING = replace(DENSE, name="mutation100-decode-rising", pattern="random", skip="stat", thresholds=(0.0,))
STAT = replace(DENSE, name="mutation100-decode-stat", skip="stat", pattern="random", lens=((7, 2900),))
PAGED = replace(DENSE, name="mutation100-decode-paged", kv_layout="nhd", page_size=48, lens=((3, 1171), (3, 530)))
ITEMS = replace(DENSE, name="mutation100-decode-items", lens=((3, 300),) * 6)
TWIGS = replace(DENSE, name="mutation100-decode-twigs", head_dim=64, head_dim_v=64, heads_q=4, lens=((2, 9300),))
EIGHT_BIT = replace(STAT, name="mutation100-decode-e4m3", dtype="e4m3", descales="head")
UNEVEN = replace(STAT, name="mutation100-decode-uneven", heads_q=6, lens=((3, 1500),), pattern="all_but_first")

MUTATIONS_SM100_DECODE: tuple[Mutation, ...] = (
    Mutation(
        "scores read without fence::after",
        SOFTMAX,
        "wait_tmem(&smem_.s_full[s_.slot], s_.phase);",
        "ptx::mbarrier_wait_parity(&smem_.s_full[s_.slot], s_.phase);",
        DENSE,
        ("fence",),
    ),
    Mutation(
        "probabilities handed over without fence::before",
        SOFTMAX,
        "      release_tmem(&smem_.p_full[s_.slot]);\n      s_.advance();\n    }\n    const float sum",
        "      release(&smem_.p_full[s_.slot]);\n      s_.advance();\n    }\n    const float sum",
        DENSE,
        ("fence",),
    ),
    Mutation(
        "correction hands O over without fence::before",
        CORRECTION,
        "release_tmem(&smem_.p_full[p_state_.slot]);",
        "release(&smem_.p_full[p_state_.slot]);",
        DENSE,
        ("fence",),
    ),
    Mutation(
        "products issued without fence::after",
        MMA,
        "if (tile.loaded) wait_tmem(&smem_.v_full[",
        "if (tile.loaded) ptx::mbarrier_wait_parity(&smem_.v_full[",
        DENSE,
        ("fence",),
    ),
    Mutation(
        "no proxy fence after clearing the tail of V",
        CORRECTION,
        "    ptx::fence_proxy_async();\n",
        "",
        DENSE,
        ("fence",),
    ),
    Mutation(
        "O read before its product is done",
        CORRECTION,
        "    wait_tmem(&smem_.o_full, values_.o_phase());\n",
        "    ptx::tcgen05_fence_after_thread_sync();\n",
        DENSE,
        (
            "race",
            "early-read",
            "early-overwrite",
            "tensor-memory",
            "fence",
        ),
    ),
    Mutation(
        "scores written over probabilities that a product still reads",
        MMA,
        "    wait_tmem(&smem_.o_full, values_.o_phase());\n",
        "",
        DENSE,
        (
            "early-overwrite",
            "early-read",
            "race",
            "fence",
        ),
    ),
    Mutation(
        "two tiles of scores ahead",
        MMA,
        "      issue_scores();\n      multiply_values(started);",
        "      issue_scores();\n      if (n == tiles.lo) issue_scores();\n      multiply_values(started);",
        DENSE,
        (
            "early-overwrite",
            "early-read",
            "race",
        ),
    ),
    Mutation(
        "correction not waited for",
        STORAGE,
        "ptx::mbarrier_init(&p_full[i], 2 * kGroupWarps);",
        "ptx::mbarrier_init(&p_full[i], kGroupWarps);",
        DENSE,
        (
            "race",
            "early-read",
            "early-overwrite",
            "barrier",
            "tensor-memory",
            "fence",
            "deadlock",
        ),
    ),
    Mutation(
        "told over what has not been heard",
        SOFTMAX,
        "    ptx::mbarrier_wait_parity(&smem_.told_empty, told_phase_ ^ 1);\n",
        "",
        DENSE,
        (
            "race",
            "barrier",
        ),
    ),
    Mutation(
        "heard before it is told",
        CORRECTION,
        "    ptx::mbarrier_wait_parity(&smem_.told_full, told_phase_);\n",
        "",
        DENSE,
        (
            "race",
            "barrier",
            "tensor-memory",
        ),
    ),
    Mutation(
        "start tiles released once",
        SOFTMAX,
        "      release_tmem(&smem_.p_full[s_.slot]);  // for correction, which has no part in it\n",
        "",
        STAT,
        ("deadlock",),
    ),
    Mutation(
        "correction unaware of start tiles",
        CORRECTION,
        "    for (int n = item.start.lo; n < item.start.hi; ++n) p_state_.advance();  // they have scores, and no P\n",
        "",
        STAT,
        (
            "deadlock",
            "barrier",
            "race",
        ),
    ),
    Mutation(
        "Q handed back before its products are done",
        MMA,
        "if (--left_ == 0) announce(&smem_.q_empty);",
        "if (--left_ == 0) arrive_at_once(&smem_.q_empty);",
        DENSE,
        (
            "early-overwrite",
            "race",
        ),
    ),
    Mutation(
        "V handed back before its product is done",
        MMA,
        "    wait_tmem(&smem_.o_full, values_.o_phase());\n"
        "    if (tile.loaded) ptx::mbarrier_arrive(&smem_.v_empty[tile.at.slot]);\n",
        "    if (tile.loaded) ptx::mbarrier_arrive(&smem_.v_empty[tile.at.slot]);\n"
        "    wait_tmem(&smem_.o_full, values_.o_phase());\n",
        DENSE,
        (
            "early-overwrite",
            "race",
            "early-read",
        ),
    ),
    Mutation(
        "votes not waited for",
        SOFTMAX,
        "    ptx::mbarrier_wait_parity(&vote.voted, phase);\n",
        "",
        STAT,
        (
            "race",
            RESULT,
        ),
    ),
    Mutation(
        "a vote written over one that V's loader has not read",
        SOFTMAX,
        "      ptx::mbarrier_wait_parity(&vote.counted, phase ^ 1);\n",
        "",
        STAT,
        (
            "race",
            "barrier",
        ),
    ),
    Mutation(
        "an item written over one that is still read",
        FEEDER,
        "    ptx::mbarrier_wait_parity(&smem_.work_empty[work_.slot], work_.phase ^ 1);\n",
        "",
        ITEMS,
        (
            "race",
            "barrier",
            "deadlock",
        ),
    ),
    Mutation(
        "skipped tiles multiplied",
        MMA,
        "    if (tile.kept) {\n      issue_values",
        "    if (true) {\n      issue_values",
        STAT,
        (
            RESULT,
            "race",
            "tensor-memory",
            "early-read",
            "early-overwrite",
        ),
    ),
    Mutation(
        "a leaf's first product adds to the leaf before",
        MMA,
        "bool started = false;  // whether",
        "bool started = true;  // whether",
        DENSE,
        (
            RESULT,
            "tensor-memory",
        ),
    ),
    Mutation(
        "output not rescaled",
        CORRECTION,
        "      if (ptx::warp_any(acc_scale != 1.0f)) rescale(acc_scale);\n",
        "",
        RISING,
        (RESULT,),
    ),
    Mutation(
        "half a row's maximum",
        SOFTMAX,
        "return ptx::max_nan(half_max, ptx::shfl_xor(half_max, kHalfWarp));",
        "return half_max;",
        RISING,
        (RESULT,),
    ),
    Mutation(
        "half a row's sum",
        SOFTMAX,
        "(row_.sum + ptx::shfl_xor(row_.sum, kHalfWarp))",
        "(row_.sum + row_.sum)",
        RISING,
        (RESULT,),
    ),
    Mutation(
        "tail of V not cleared",
        CORRECTION,
        "      if (seen.lo > 0 || seen.hi < Tr::kTileN) clear_unseen(tile.at, seen);\n",
        "",
        PAGED,
        (RESULT,),
    ),
    Mutation(
        "invalid rows vote",
        SOFTMAX,
        "!at_.valid(0) | row_can_skip(",
        "row_can_skip(",
        UNEVEN,
        (RESULT,),
    ),
    Mutation(
        "leaves start from nothing",
        SOFTMAX,
        "row_ = {start, start == kInf ? kNan : start, 0.0f};",
        "row_ = {-kInf, -kInf, 0.0f};",
        UNEVEN,
        (RESULT,),
    ),
    Mutation(
        "a branch's second twig alone",
        CORRECTION,
        "      if (!starts_branch_) merge_twig(",
        "      if (false) merge_twig(",
        TWIGS,
        (RESULT,),
    ),
    Mutation(
        "8-bit columns in another unit than their sum",
        CORRECTION,
        "o[i] * kSumUnit<typename Tr::Element>)",
        "o[i])",
        EIGHT_BIT,
        (RESULT,),
    ),
)
