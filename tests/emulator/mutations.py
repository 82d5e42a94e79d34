"""Deliberate mistakes in the kernels: each replaces a piece of a header, and each must be caught.

``kinds`` says by what: an ``EmulatorError.kind`` or, as ``result``, an answer that differs from the oracle's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.helpers.cases import Case

RESULT = "result"
CONSUMER, PRODUCER = "skimattn/sm90/consumer.cuh", "skimattn/sm90/producer.cuh"
EPILOGUE, STORAGE = "skimattn/sm90/epilogue.cuh", "skimattn/sm90/storage.cuh"
DESCRIPTOR, SKIP = "skimattn/sm90/descriptor.cuh", "skimattn/core/skip.cuh"
MASK, SOFTMAX, SCHEDULER = "skimattn/core/mask.cuh", "skimattn/core/softmax.cuh", "skimattn/core/scheduler.cuh"
SCORES, TILES = "skimattn/core/scores.cuh", "skimattn/core/tile_range.cuh"

DENSE = Case(
    "mutation-dense", head_dim=128, head_dim_v=128, skip="dense", lens=((200, 500),), pattern="none", mask="causal"
)
STAT = Case("mutation-stat", skip="stat", lens=((300, 700),), pattern="alternating", mask="full")
RAGGED = replace(
    STAT, name="mutation-ragged", q_layout="ragged", kv_layout="ragged", lens=((100, 400), (70, 300)), pattern="tail"
)
PAGED = replace(DENSE, name="mutation-paged", kv_layout="nhd", page_size=48, lens=((70, 300), (70, 200)))
SHARED_O = replace(DENSE, name="mutation-shared-o", head_dim=192, lens=((256, 300),))
WINDOW = replace(DENSE, name="mutation-window", mask="window", window=(150, 20))


@dataclass(frozen=True)
class Mutation:
    """Replaces ``old``, which must occur exactly once in ``header``, by ``new``; ``case`` shows it."""

    name: str
    header: str
    old: str
    new: str
    case: Case
    kinds: tuple[str, ...]

    def apply(self, header: str, text: str) -> str:
        """A ``source_override``; ``LookupError`` if the header no longer holds what is replaced."""
        if header != self.header:
            return text
        if (count := text.count(self.old)) != 1:
            raise LookupError(f"{self.name}: expected {self.old!r} once in {header} (got {count} times)")
        return text.replace(self.old, self.new)


MUTATIONS: tuple[Mutation, ...] = (
    # ---- wgmma
    Mutation(
        "scores read without wgmma_wait",
        CONSUMER,
        "    ptx::wgmma_wait<kDue == Due::kProduct ? 1 : 0>();\n",
        "",
        DENSE,
        ("early-overwrite", "register"),
    ),
    Mutation(
        "output rescaled before the product is done",
        CONSUMER,
        "    if constexpr (kDue == Due::kProduct) ptx::wgmma_wait<0>();\n",
        "",
        DENSE,
        ("early-overwrite", "register"),
    ),
    Mutation(
        "no wgmma_fence before the scores",
        CONSUMER,
        "SKIM_DEVICE void issue_qk(float (&s)[kScores]) {\n    ptx::wgmma_fence();",
        "SKIM_DEVICE void issue_qk(float (&s)[kScores]) {",
        DENSE,
        ("fence",),
    ),
    Mutation(
        "no wgmma_fence before the product",
        CONSUMER,
        "    ptx::wgmma_fence();  // for this",
        "    // for this",
        DENSE,
        ("fence",),
    ),
    Mutation(
        "K handed back before its product is done",
        CONSUMER,
        "    ptx::wgmma_wait<kDue == Due::kProduct ? 1 : 0>();\n    release(&smem_.k_empty[tiles_.slot]);\n",
        "    release(&smem_.k_empty[tiles_.slot]);\n    ptx::wgmma_wait<kDue == Due::kProduct ? 1 : 0>();\n",
        DENSE,
        ("early-overwrite", "race"),
    ),
    Mutation(
        "descriptor fields swapped",
        DESCRIPTOR,
        "static_cast<uint64_t>(panel_bytes >> 4) << 16 | kStrideOffset",
        "static_cast<uint64_t>(panel_bytes >> 4) << 32 | uint64_t{1024 >> 4} << 16",
        DENSE,
        (RESULT, "out-of-bounds", "race"),
    ),
    Mutation("k16 step too long", CONSUMER, "inside = i % 4 * 32;", "inside = i % 4 * 64;", DENSE, ("descriptor",)),
    # ---- barriers and rings
    Mutation(
        "producer waits for the wrong parity",
        PRODUCER,
        "&smem_.k_empty[k_.slot], k_.phase ^ 1)",
        "&smem_.k_empty[k_.slot], k_.phase)",
        DENSE,
        ("deadlock",),
    ),
    Mutation(
        "consumer waits for the wrong parity",
        CONSUMER,
        "&smem_.k_full[tiles_.slot], tiles_.phase)",
        "&smem_.k_full[tiles_.slot], tiles_.phase ^ 1)",
        DENSE,
        ("early-read", "race", "deadlock"),
    ),
    Mutation("K never handed back", CONSUMER, "    release(&smem_.k_empty[tiles_.slot]);\n", "", DENSE, ("deadlock",)),
    Mutation(
        "Q never handed back",
        CONSUMER,
        "release(&smem_.q_empty[group_]);",
        ";",
        replace(DENSE, name="mutation-heads", heads_q=4),
        ("deadlock",),
    ),
    Mutation(
        "too few arrivals expected of the readers",
        STORAGE,
        "ptx::mbarrier_init(&v_empty[i], kReaders);",
        "ptx::mbarrier_init(&v_empty[i], kReaders - 1);",
        DENSE,
        ("early-overwrite", "race", "barrier"),
    ),
    Mutation(
        "expect_tx of half a tile",
        PRODUCER,
        "mbarrier_arrive_expect_tx(full, kPanels * Storage::kKvPanelBytes)",
        "mbarrier_arrive_expect_tx(full, kPanels * Storage::kKvPanelBytes / 2)",
        DENSE,
        ("barrier", "early-read"),
    ),
    Mutation(
        "expect_tx of a box too many",
        PRODUCER,
        "mbarrier_arrive_expect_tx(full, boxes * ",
        "mbarrier_arrive_expect_tx(full, (boxes + 1) * ",
        PAGED,
        ("deadlock",),
    ),
    Mutation(
        "a skipped V is handed back unseen",
        CONSUMER,
        "    if constexpr (kDue == Due::kRelease) ptx::mbarrier_wait_parity(&smem_.v_full[due.slot], due.phase);\n",
        "",
        STAT,
        ("early-overwrite", "race", "barrier"),
    ),
    Mutation(
        "lanes released without warp_sync",
        CONSUMER,
        "    ptx::warp_sync();\n    if (thread_ % kWarpThreads == 0) ptx::mbarrier_arrive(empty);",
        "    if (thread_ % kWarpThreads == 0) ptx::mbarrier_arrive(empty);",
        DENSE,
        ("race",),
    ),
    Mutation(
        "no fence after the barriers' initialisation",
        STORAGE,
        "    ptx::fence_mbarrier_init();\n",
        "",
        DENSE,
        ("fence",),
    ),
    # ---- proxies and stores
    Mutation(
        "no proxy fence before the output's store", EPILOGUE, "    ptx::fence_proxy_async();\n", "", DENSE, ("fence",)
    ),
    Mutation(
        "no barrier before the output's store",
        EPILOGUE,
        "    ptx::fence_proxy_async();\n    ptx::bar_sync(bar, kGroupThreads);\n",
        "    ptx::fence_proxy_async();\n",
        DENSE,
        ("fence", "race"),
    ),
    Mutation(
        "output written while the last one is being stored",
        EPILOGUE,
        "    if (thread == 0) ptx::tma_store_wait_read<0>();  // the",
        "    // the",
        replace(DENSE, name="mutation-heads", heads_q=4),
        ("early-overwrite",),
    ),
    Mutation(
        "Q's buffer handed back while the output leaves it",
        EPILOGUE,
        "        ptx::tma_store_wait_read<0>();\n        ptx::mbarrier_arrive(&smem.q_empty[group]);",
        "        ptx::mbarrier_arrive(&smem.q_empty[group]);",
        replace(SHARED_O, name="mutation-shared-o-heads", heads_q=4),
        ("early-overwrite",),
    ),
    Mutation(
        "exit while the output is being stored",
        EPILOGUE,
        "    if (thread == 0) ptx::tma_store_wait<0>();\n",
        "",
        DENSE,
        ("exit",),
    ),
    Mutation(
        "no proxy fence after clearing the tail of V",
        CONSUMER,
        "    ptx::fence_proxy_async();\n",
        "",
        DENSE,
        ("fence",),
    ),
    Mutation(
        "output stored without the swizzle",
        DESCRIPTOR,
        "return offset ^ ((offset >> 7) & 7) << 4;",
        "return offset;",
        DENSE,
        (RESULT,),
    ),
    # ---- what is computed
    Mutation("rescale dropped", CONSUMER, "    rescale(o_, alpha);\n", "", STAT, (RESULT,)),
    Mutation("invalid rows vote", CONSUMER, "!at_.valid(r) || row_agrees", "row_agrees", RAGGED, (RESULT,)),
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
        "imax(diagonal - p.window_left, 0)",
        "imax(diagonal - p.window_left + 1, 0)",
        WINDOW,
        (RESULT,),
    ),
    Mutation(
        "wrong page",
        PRODUCER,
        "ptx::ld_global(pages + key / p_.page_size)",
        "ptx::ld_global(pages + key0 / p_.page_size)",
        PAGED,
        (RESULT,),
    ),
    Mutation(
        "page table read past the request",
        PRODUCER,
        "keys.batch) * p_.page_table_stride",
        "keys.batch + 1) * p_.page_table_stride",
        PAGED,
        (RESULT, "out-of-bounds"),
    ),
    Mutation(
        "tail of V not cleared", CONSUMER, "    if (keys >= Tr::kTileN) return;\n", "    return;\n", PAGED, (RESULT,)
    ),
    Mutation(
        "running maximum of all tiles, skipped ones too",
        CONSUMER,
        "      pending_ = !vote_to_skip(tile_max);\n",
        "      pending_ = !vote_to_skip(tile_max);\n"
        "      for (int r = 0; r < kThreadRows; ++r) rows_.max[r] = ptx::max_nan(rows_.max[r], tile_max[r]);\n",
        STAT,
        (RESULT,),
    ),
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
    Mutation("work counter not reset", SCHEDULER, "ptx::st_global(counter_, 0u)", "", DENSE, (RESULT,)),
)
