"""Cases and headers of the deliberate mistakes in the decode kernels and those that combine."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.helpers.cases import Case

from .mutation import Mutation

FOLDER = "skimattn/sm90/decode"
CONSUMER, PRODUCER, STORAGE = f"{FOLDER}/consumer.cuh", "skimattn/core/decode_producer.cuh", f"{FOLDER}/storage.cuh"
EPILOGUE, OPERANDS = f"{FOLDER}/epilogue.cuh", f"{FOLDER}/operands.cuh"
VOTES, ITEM = f"{FOLDER}/votes.cuh", f"{FOLDER}/item.cuh"
FEEDER, STATS = "skimattn/core/decode_feeder.cuh", "skimattn/core/decode_stats.cuh"
COMBINE, SPLIT, WORK = "skimattn/core/combine.cuh", "skimattn/core/split.cuh", "skimattn/core/decode_work.cuh"

# Leaves of 512 keys, 8 tiles. On one multiprocessor, so that each of its two CTAs takes several items in turn.
STAT = Case(
    "mutation-decode-stat",
    phase="decode",
    head_dim=128,
    head_dim_v=128,
    lens=((4, 1300), (4, 1300)),
    heads_q=32,
    heads_kv=2,
    pattern="random_rows",
    mask="full",
)
DENSE = replace(STAT, name="mutation-decode-dense", skip="dense", mask="causal", lens=((2, 1300), (2, 1300)))
LONG = replace(STAT, name="mutation-decode-long", lens=((2, 5300),), heads_q=8, heads_kv=1, mask="causal")
# Rows of which some show, in the last bit of what they are, in which order leaves were merged.
ORDER = replace(LONG, name="mutation-decode-order", heads_q=128, lens=((1, 4700),), skip="dense")
START = replace(STAT, name="mutation-decode-start", pattern="all_but_first", lens=((4, 1000), (4, 1000)))
WHOLE = replace(DENSE, name="mutation-decode-whole-tiles", lens=((2, 1280),) * 2)
SHORT = replace(DENSE, name="mutation-decode-short", lens=((2, 60),) * 5)
D256 = replace(DENSE, name="mutation-decode-d256", head_dim=256, head_dim_v=256, heads_q=4)
WINDOW = replace(STAT, name="mutation-decode-window", mask="window", window=(1900, 0), lens=((3, 4700),), heads_q=8)
BORDERS = replace(WINDOW, name="mutation-decode-borders", window=(700, 0), lens=((4, 1090),))
# Dense: in a skipped tile a key more or less would not show.
EDGE = replace(BORDERS, name="mutation-decode-edge", skip="dense")
CACHE = replace(STAT, name="mutation-decode-e4m3", kv_dtype="e4m3", descales="head", heads_q=8)
HEADS = replace(STAT, name="mutation-decode-heads", heads_q=96, heads_kv=1, lens=((1, 1600),))
ZERO = replace(
    STAT, name="mutation-decode-zero", threshold_kind="head", thresholds=(1e-3,) * 20 + (0.0,) + (1e-3,) * 11
)
PAGED = replace(DENSE, name="mutation-decode-paged", kv_layout="nhd", page_size=16, lens=((2, 1300), (2, 700)))
SINKS = replace(LONG, name="mutation-decode-sinks", sinks=True, skip="dense")
MIXED = replace(
    STAT,
    name="mutation-decode-mixed",
    phase="mixed",
    heads_q=4,
    lens=((1, 600), (100, 300), (3, 700)),
    q_layout="ragged",
    kv_layout="ragged",
)


@dataclass(frozen=True)
class DecodeMutation(Mutation):
    """``parts``: the sizes of parts in which the call runs. The first is checked, the others give its bits.

    ``twin``: another call with these bits.
    """

    parts: tuple[int, ...] = (1, 4)
    twin: Case | None = None
