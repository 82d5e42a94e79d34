"""SM100's decode kernels on the emulator: every pair of features, borders, starts, patterns, batches, schedules.

Products count as ordered only where the ISA says so: decode, unlike prefill, waits for them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.emulator import EmulatorError, compile_kernel
from tests.helpers.bodies import name
from tests.helpers.cases import Case, contents
from tests.helpers.catalogue import feature_covering
from tests.helpers.check import assert_same_bits, check
from tests.helpers.decode_cases import (
    decode_border_cases,
    decode_pairwise_cases,
    decode_pattern_cases,
    decode_start_cases,
    decode_tree_cases,
)
from tests.helpers.oracle import KEPT, SKIPPED
from tests.helpers.properties import Target, kinds_agree
from tests.helpers.run import run_case

STRICT: dict[str, Any] = {"strict_products": True}
SCHEDULES = ("late", "early", "random")


def on_sm100(cases: tuple[Case, ...]) -> list[Case]:
    return [replace(case, arch="sm100") for case in cases]


def run_dealt(case: Case) -> None:
    """With a schedule and a number of multiprocessors that follow from the case's seed."""
    dealt = {"schedule": SCHEDULES[case.seed % 3], "seed": case.seed, "sms": 1 + case.seed % 4}
    check(*run_case(case, "emulator", **dealt, **STRICT))


@pytest.mark.parametrize("case", feature_covering(decode_pairwise_cases("sm100")), ids=name)
def test_kernel_pairs(case: Case) -> None:
    run_dealt(case)


@pytest.mark.parametrize("case", on_sm100(decode_border_cases())[::3], ids=name)
def test_borders(case: Case) -> None:
    run_dealt(case)


@pytest.mark.parametrize("case", on_sm100((*decode_start_cases(), *decode_tree_cases())), ids=name)
def test_starts_and_trees(case: Case) -> None:
    run_dealt(case)


@pytest.mark.parametrize("case", on_sm100(decode_pattern_cases())[::5], ids=name)
def test_planted(case: Case) -> None:
    result, held = run_case(case, "emulator", schedule="random", seed=3, **STRICT)
    answers = check(result, held)
    assert any((answer.skip_map == SKIPPED).any() for answer in answers), "nothing to skip: the pattern is not planted"
    assert any((answer.skip_map == KEPT).any() for answer in answers)


BATCH = Case(
    "batch",
    arch="sm100",
    phase="decode",
    mask="causal",
    heads_q=6,
    heads_kv=2,
    lens=((1, 9), (4, 0), (3, 2500), (0, 40), (22, 1100), (1, 1025)),
    q_layout="ragged",
    kv_layout="ragged",
    seqused=True,
    pattern="random",
)
DIMS = {"d64": 64, "d128": 128, "d256": 256}


@pytest.mark.parametrize("dtype", ["bf16", "e4m3"])
@pytest.mark.parametrize("dim", DIMS)
def test_schedules_grids_and_batches_do_not_show(dim: str, dtype: str) -> None:
    case = replace(BATCH, head_dim=DIMS[dim], head_dim_v=DIMS[dim], dtype=dtype)
    held = contents(case)
    first, _ = run_case(case, "emulator", held, **STRICT)
    check(first, held)
    for seed, (schedule, sms) in enumerate([("early", 1), ("random", 4), ("random", 2), ("late", 3)]):
        other, _ = run_case(case, "emulator", held, schedule=schedule, seed=seed, sms=sms, **STRICT)
        assert_same_bits(f"{schedule} {sms}", first, other)
    for index in (2, 4):
        alone, _ = run_case(case.alone(index), "emulator", [held[index]], schedule="random", seed=index, **STRICT)
        assert_same_bits(f"request {index} alone", alone, first, [(0, index)])


@pytest.mark.parametrize("dtype", ["fp16", "e4m3"])
def test_kinds_agree(dtype: str) -> None:
    kinds_agree(replace(BATCH, name="kinds", dtype=dtype, head_dim=128, head_dim_v=128), Target("emulator", "sm100"))


def test_a_cta_outlives_its_commits() -> None:
    """Where the last tile is skipped, no product is waited for after it."""
    case = replace(BATCH, head_dim=128, head_dim_v=128, lens=((3, 1500),), pattern="all_but_first")

    def forget(header: str, text: str) -> str:
        return text.replace("    outlive_commits();\n", "") if header.endswith("decode/mma_warp.cuh") else text

    kernel = compile_kernel(case.spec, source_override=forget)
    with pytest.raises(EmulatorError, match="before the tcgen05 products and commits of thread 256 are done"):
        run_case(case, "emulator", kernel=kernel, schedule="late")


@pytest.mark.exhaustive
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case", decode_pairwise_cases("sm100"), ids=name)
def test_every_pair(case: Case, schedule: str) -> None:
    check(*run_case(case, "emulator", schedule=schedule, seed=case.seed, sms=1 + case.seed % 4, **STRICT))
