"""Sizes of real calls, 4k to 16k, against float64 on the GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.helpers.cases import Case
from tests.helpers.gpu import gpu_arch
from tests.helpers.large import run_large

_BASE = Case(name="", arch=gpu_arch(), head_dim=128, head_dim_v=128, lens=((8192, 8192),), pattern="random")
_RAGGED = replace(
    _BASE, q_layout="ragged", lens=((4096, 4096), (130, 8192), (0, 300), (777, 5000), (2048, 2048)), kv_layout="ragged"
)
CASES = (
    replace(_BASE, name="causal-16k-random", lens=((16384, 16384),), heads_q=1),
    replace(_BASE, name="full-8k-alternating", mask="full", pattern="alternating"),
    replace(_BASE, name="causal-8k-natural", pattern="none", thresholds=(1.0,)),
    replace(_BASE, name="full-8k-natural-fp16", mask="full", pattern="none", thresholds=(1.0,), dtype="fp16"),
    replace(_BASE, name="chunked-prefill-paged", lens=((2048, 16384),), kv_layout="hnd"),
    replace(_BASE, name="window-8k", mask="window", window=(1023, 0)),
    replace(_RAGGED, name="ragged-d64", head_dim=64, head_dim_v=64),
    replace(_RAGGED, name="ragged-mla", kv_layout="nhd", head_dim=192, pattern="random_rows"),
    replace(_BASE, name="causal-4k-d256", lens=((4096, 4096),), head_dim=256, head_dim_v=256),
    replace(_BASE, name="dense-8k", skip="dense", pattern="none"),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_large(case: Case, record_property: Callable[[str, object], None]) -> None:
    tally = run_large(case)
    record_property("tally", f"{case.name}: {tally}")
    assert tally.visited > 0 and tally.close < 0.01 * tally.visited
    assert tally.skipped > 0 if case.skip == "stat" else tally.skipped == 0
