"""Deliberate mistakes that kernels of 80 and 96 columns alone show: they end in part of a panel."""

from __future__ import annotations

from dataclasses import replace

from .mutation import CONSUMER, DENSE, EPILOGUE, RESULT, SOFTMAX, Mutation

D96 = replace(DENSE, name="mutation-d96", head_dim=96, head_dim_v=96)
# The other head's output lies behind each row's, and rows that fill no tile are written without a tensor map.
D72 = replace(D96, name="mutation-d72", head_dim=72, head_dim_v=72)
D80 = replace(DENSE, name="mutation-d80", head_dim=80, head_dim_v=80)

MUTATIONS_D96: tuple[Mutation, ...] = (
    Mutation(
        "half a panel of Q and K not multiplied",
        CONSUMER,
        "i < Tr::kHeadDim / kStepElements;",
        "i < Tr::kHeadDim / (4 * kStepElements) * 4;",
        D96,
        (RESULT,),
    ),
    Mutation(
        "panels of V as far apart as full ones",
        CONSUMER,
        "mn_major(smem_.v[0], Storage::kKvPanelBytes)",
        "mn_major(smem_.v[0], Tr::kTileN * Tr::kHeadDimV)",
        D96,
        (RESULT,),
    ),
    Mutation(
        "half a panel of the output not written",
        EPILOGUE,
        "          if (i >= kOut) continue;",
        "          if (kOut < (panel + 1) * (kColumns / 2)) continue;",
        D96,
        (RESULT,),
    ),
    Mutation(
        "half a panel of the output not stored",
        EPILOGUE,
        "panel < Storage::kPanelsO; ++panel) {\n      ptx::tma_store",
        "panel < kOut / (kColumns / 2); ++panel) {\n      ptx::tma_store",
        D96,
        (RESULT,),
    ),
    Mutation(
        "columns of zeros stored behind a row",
        EPILOGUE,
        "        if (column >= p.head_dim_v) break;\n",
        "",
        D72,
        (RESULT, "out-of-bounds", "race"),
    ),
    Mutation(
        "columns that no step of the exponentials scales",
        SOFTMAX,
        "kChunk = ceil_div(kOut, kSteps);",
        "kChunk = kOut / kSteps;",
        D80,
        (RESULT,),
    ),
)
