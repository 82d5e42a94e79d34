"""Deliberate mistakes in MLA decode: in how its warpgroups, its loader and its counter wait for each other."""

from __future__ import annotations

from dataclasses import replace

from tests.helpers.cases import Case
from tests.helpers.run import DEFAULT_SMS

from .mutation import RESULT, Mutation

_FOLDER = "skimattn/sm90/mla"
LEADER, FOLLOWER, PRODUCER = f"{_FOLDER}/leader.cuh", f"{_FOLDER}/follower.cuh", f"{_FOLDER}/producer.cuh"
GROUP, STORAGE, EPILOGUE = f"{_FOLDER}/group.cuh", f"{_FOLDER}/storage.cuh", f"{_FOLDER}/epilogue.cuh"

DENSE = Case(
    "mutation-mla-dense",
    phase="mla",
    head_dim=576,
    head_dim_v=512,
    heads_q=70,
    heads_kv=1,
    lens=((1, 400),),
    skip="dense",
    pattern="none",
    mask="full",
    scale=0.1,
    kv_layout="nhd",
)
STAT = replace(DENSE, name="mutation-mla-stat", heads_q=8, skip="stat", pattern="alternating", lens=((1, 700),))
# As many requests as multiprocessors, so that each has a CTA for all its leaves.
LEAVES = replace(DENSE, name="mutation-mla-leaves", heads_q=4, lens=((1, 2300),) * DEFAULT_SMS)
ITEMS = replace(DENSE, name="mutation-mla-items", heads_q=4, lens=((1, 130),) * 8)

MUTATIONS_MLA: tuple[Mutation, ...] = (
    # ---- the tile, in three parts
    Mutation(
        "mla: scores of a part that has not come",
        LEADER,
        "      this->wait_for(part);\n",
        "      if (part != Storage::kRight) this->wait_for(part);\n",
        DENSE,
        ("early-read", "race"),
    ),
    Mutation(
        "mla: parts handed back before the scores are there",
        LEADER,
        "    ptx::wgmma_wait<0>();\n    this->release(Storage::kRest);\n",
        "    this->release(Storage::kRest);\n    ptx::wgmma_wait<0>();\n",
        DENSE,
        ("early-overwrite", "race"),
    ),
    Mutation(
        "mla: the right half handed back by the follower alone",
        STORAGE,
        "&kv_empty[i][kRight], 2 * kGroupWarps);",
        "&kv_empty[i][kRight], kGroupWarps);",
        DENSE,
        ("early-overwrite", "race", "barrier", "early-read"),
    ),
    Mutation(
        "mla: the leader does not hand back the right half",
        LEADER,
        "    this->release(Storage::kRight);\n",
        "",
        DENSE,
        ("deadlock",),
    ),
    Mutation(
        "mla: the left half handed back before its product is done",
        LEADER,
        "    ptx::wgmma_commit();\n    ptx::wgmma_wait<0>();\n  }\n\n  // The follower's P",
        "    ptx::wgmma_commit();\n  }\n\n  // The follower's P",
        DENSE,
        ("early-overwrite", "register", "race"),
    ),
    Mutation(
        "mla: bytes of another part expected",
        PRODUCER,
        "rows * kPanelRowBytes * Storage::panels(part));",
        "rows * kPanelRowBytes * Storage::panels(Storage::kLeft));",
        DENSE,
        ("deadlock",),
    ),
    Mutation(
        "mla: the loader waits for the wrong parity",
        PRODUCER,
        "&smem_.kv_empty[kv_.slot][part], kv_.phase ^ 1)",
        "&smem_.kv_empty[kv_.slot][part], kv_.phase)",
        DENSE,
        ("deadlock",),
    ),
    # ---- what the leader tells
    Mutation(
        "mla: P overwritten while the follower multiplies it",
        LEADER,
        "    ptx::mbarrier_wait_parity(&smem_.told_empty, told_.phase ^ 1);\n#pragma unroll",
        "#pragma unroll",
        DENSE,
        ("race", "early-overwrite"),
    ),
    Mutation(
        "mla: a leaf's scales overwritten before they are read",
        LEADER,
        "    ptx::mbarrier_wait_parity(&smem_.told_empty, told_.phase ^ 1);\n    if",
        "    if",
        DENSE,
        ("race", "early-overwrite"),
    ),
    Mutation(
        "mla: no proxy fence before P is told",
        LEADER,
        "    ptx::fence_proxy_async();\n    this->signal(&smem_.told_full);\n",
        "    this->signal(&smem_.told_full);\n",
        DENSE,
        ("fence",),
    ),
    Mutation(
        "mla: the follower does not wait for P",
        FOLLOWER,
        "    ptx::mbarrier_wait_parity(&smem_.told_full, told_.phase);\n    float scale",
        "    float scale",
        DENSE,
        ("race", "fence", "barrier"),
    ),
    Mutation(
        "mla: P handed back before its product is done",
        FOLLOWER,
        "    ptx::wgmma_wait<0>();\n    this->signal(&smem_.told_empty);\n",
        "    this->signal(&smem_.told_empty);\n    ptx::wgmma_wait<0>();\n",
        DENSE,
        ("race", "early-overwrite"),
    ),
    Mutation(
        "mla: lanes signal without warp_sync",
        GROUP,
        "    ptx::warp_sync();\n    if (thread_ % kWarpThreads == 0) ptx::mbarrier_arrive(barrier);",
        "    if (thread_ % kWarpThreads == 0) ptx::mbarrier_arrive(barrier);",
        DENSE,
        ("race", "fence"),
    ),
    Mutation(
        "mla: scales of leaves written while other lanes read",
        LEADER,
        "    ptx::warp_sync();  // all lanes have read\n",
        "",
        LEAVES,
        ("race",),
    ),
    # ---- keys that nobody sees
    Mutation(
        "mla: cleared while other warps read it as K",
        LEADER,
        "    ptx::bar_sync(kUnseenBarrier, kGroupThreads);  // other warps may still read it as K\n",
        "",
        DENSE,
        ("race",),
    ),
    Mutation(
        "mla: no proxy fence after clearing",
        LEADER,
        "    ptx::fence_proxy_async();\n    ptx::bar_sync(kUnseenBarrier, kGroupThreads);\n",
        "    ptx::bar_sync(kUnseenBarrier, kGroupThreads);\n",
        DENSE,
        ("fence", "race"),
    ),
    Mutation(
        "mla: no barrier after clearing",
        LEADER,
        "    ptx::fence_proxy_async();\n    ptx::bar_sync(kUnseenBarrier, kGroupThreads);\n",
        "    ptx::fence_proxy_async();\n",
        DENSE,
        ("race", "fence"),
    ),
    Mutation("mla: nothing cleared", LEADER, "if constexpr (kMasked) clear_unseen(n);", "", DENSE, (RESULT,)),
    # ---- votes
    Mutation(
        "mla: the follower takes a vote it has not heard",
        FOLLOWER,
        "    ptx::mbarrier_wait_parity(&vote.voted, vote_.phase);\n",
        "",
        STAT,
        ("race", "barrier"),
    ),
    Mutation(
        "mla: the counter takes a vote it has not heard",
        PRODUCER,
        "          ptx::mbarrier_wait_parity(&vote.voted, place.phase);\n",
        "",
        STAT,
        ("race", "barrier"),
    ),
    Mutation(
        "mla: a vote's place used again before the counter has read it",
        STORAGE,
        "&votes[i].counted, kGroupWarps + kCounters);",
        "&votes[i].counted, kGroupWarps);",
        STAT,
        ("race", "barrier", "deadlock", RESULT),
    ),
    # ---- Q and the work
    Mutation(
        "mla: Q handed back before the item is done",
        LEADER,
        "    ptx::mbarrier_wait_parity(&smem_.q_full, this->work_.slot);\n",
        "    ptx::mbarrier_wait_parity(&smem_.q_full, this->work_.slot);\n    this->signal(&smem_.q_empty);\n",
        ITEMS,
        ("early-overwrite", "race", "early-read"),
        moved="      this->signal(&smem_.q_empty);\n",
    ),
    Mutation(
        "mla: the item's place used again while the follower reads it",
        STORAGE,
        "2 * kGroupWarps + 1 + kCounters);",
        "kGroupWarps + 1 + kCounters);",
        ITEMS,
        ("race", "barrier", "deadlock", RESULT, "wgmma"),
    ),
    # ---- operands
    Mutation(
        "mla: chunks of P too far apart",
        "skimattn/sm90/descriptor.cuh",
        "static_cast<uint64_t>(rows * kChunkBytes >> 4) << 16",
        "static_cast<uint64_t>(rows * kChunkBytes >> 3) << 16",
        DENSE,
        (RESULT, "race", "early-read", "fence"),
    ),
    Mutation(
        "mla: the follower multiplies the left half",
        GROUP,
        "Storage::first_panel(kPart) * Storage::kKvPanelBytes",
        "0 * Storage::kKvPanelBytes",
        DENSE,
        (RESULT, "race", "early-overwrite", "early-read"),
    ),
    Mutation(
        "mla: columns of a block stored in their order",
        EPILOGUE,
        "low[1], low[4], low[5]};",
        "low[4], low[1], low[5]};",
        LEAVES,
        (RESULT,),
    ),
)
