"""Cases and headers of the deliberate mistakes in the SM100 kernels."""

from __future__ import annotations

from dataclasses import replace

from tests.helpers.cases import Case

FOLDER = "skimattn/sm100/prefill"
MMA_WARP, SOFTMAX, CORRECTION = f"{FOLDER}/mma_warp.cuh", f"{FOLDER}/softmax.cuh", f"{FOLDER}/correction.cuh"
STORAGE, DESCRIPTOR, EPILOGUE = f"{FOLDER}/storage.cuh", "skimattn/sm100/descriptor.cuh", f"{FOLDER}/epilogue.cuh"
EXPONENTIALS, KERNEL = "skimattn/sm100/exponentials.cuh", f"{FOLDER}/kernel.cuh"
TMEM, DESCALE = "skimattn/sm100/tmem.cuh", "skimattn/core/descale.cuh"

DENSE = Case(
    "mutation100-dense",
    arch="sm100",
    head_dim=128,
    head_dim_v=128,
    skip="dense",
    lens=((300, 700),),
    pattern="first",
    mask="full",
)
STAT = replace(DENSE, name="mutation100-stat", skip="stat", pattern="alternating")
RANDOM = replace(STAT, name="mutation100-random", lens=((300, 1500),), pattern="random")
LAGGING = replace(STAT, name="mutation100-lagging", pattern="lagging")
HEADS = replace(DENSE, name="mutation100-heads", heads_q=4, lens=((256, 300),))
SHARED_O = replace(HEADS, name="mutation100-shared-o", head_dim=192, lens=((512, 300),))
NO_KEYS = replace(
    SHARED_O, name="mutation100-no-keys", q_layout="ragged", kv_layout="ragged", lens=((300, 0), (260, 130), (40, 0))
)
RAGGED = replace(
    STAT,
    name="mutation100-ragged",
    q_layout="ragged",
    kv_layout="ragged",
    lens=((100, 400), (70, 300)),
    pattern="all_but_first",
)
PAGED = replace(DENSE, name="mutation100-paged", kv_layout="nhd", page_size=48, lens=((70, 300), (70, 200)))
CUSTOM = replace(STAT, name="mutation100-custom", mask="custom", custom="bool2", pattern="random")
EIGHT_BIT = replace(STAT, name="mutation100-e4m3", dtype="e4m3", descales="head", heads_q=4, heads_kv=2)
CAUSAL = replace(DENSE, name="mutation100-causal", mask="causal")
DEEP_HEADS = replace(HEADS, name="mutation100-deep-heads", lens=((256, 700),))
EIGHT_BIT_NATURAL = replace(EIGHT_BIT, name="mutation100-e4m3-natural", pattern="none")
FP16 = replace(DENSE, name="mutation100-fp16", dtype="fp16")
