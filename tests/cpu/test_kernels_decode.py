"""The rendered decode kernels and those that combine, on the emulator against the oracle."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from skimattn._launch import decode

from tests.helpers.bodies import name, run_and_check, run_as_dealt, run_planted
from tests.helpers.cases import Case
from tests.helpers.decode_cases import (
    decode_border_cases,
    decode_covering_cases,
    decode_long_cases,
    decode_mixed_cases,
    decode_pairwise_cases,
    decode_pattern_cases,
    decode_start_cases,
    decode_tree_cases,
)
from tests.helpers.decode_properties import (
    DECODE_PROPERTIES,
    LONG,
    LONGS,
    MIXED,
    RAGGED,
    same_answers,
    ways_agree,
)
from tests.helpers.properties import Target
from tests.helpers.run import run_case

EMULATOR = Target("emulator")
FEW, ALL = decode_covering_cases(), (*decode_pairwise_cases(), *decode_pattern_cases())
# Parts of every size, numbers of multiprocessors, orders in which threads take turns and copies land.
WAYS = (
    {"part_leaves": 1, "sms": 1, "schedule": "early"},
    {"part_leaves": 4, "sms": 2, "schedule": "random", "seed": 1},
    {"part_leaves": 8, "sms": 5, "seed": 2},
    {"part_leaves": 8, "sms": 1, "schedule": "early", "seed": 3},
    {"part_leaves": 1, "sms": 132, "schedule": "random", "seed": 4},
    {"part_leaves": 4, "sms": 132},
)


@pytest.mark.parametrize("case", FEW, ids=name)
def test_covering(case: Case) -> None:
    run_as_dealt(case)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", [case for case in ALL if case not in FEW], ids=name)
def test_pairwise(case: Case) -> None:
    run_as_dealt(case)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", decode_long_cases(), ids=name)
def test_long(case: Case) -> None:
    run_and_check(case, "emulator")


@pytest.mark.parametrize("case", (*decode_border_cases(), *decode_start_cases(), *decode_tree_cases()), ids=name)
def test_borders_and_starts(case: Case) -> None:
    run_and_check(case, "emulator", seed=1, schedule="random")


@pytest.mark.parametrize("case", decode_pattern_cases()[1::4], ids=name)
def test_planted_patterns(case: Case) -> None:
    run_planted(case, "emulator")


@pytest.mark.parametrize("case", decode_mixed_cases(), ids=name)
def test_both_phases_in_one_call(case: Case) -> None:
    run_as_dealt(case)


@pytest.mark.parametrize("case", LONGS, ids=lambda case: f"{case.mask}-{case.skip}-d{case.head_dim}-{case.kv_dtype}")
def test_who_computes_what_does_not_show(case: Case) -> None:
    ways_agree(case, EMULATOR, WAYS)


def test_schedules_do_not_show_in_mixed_calls() -> None:
    ways_agree(MIXED, EMULATOR, WAYS[1:4])


@pytest.mark.parametrize("holds", DECODE_PROPERTIES, ids=lambda holds: holds.__name__)
def test_property(holds: Callable[[Target], None]) -> None:
    holds(EMULATOR)


@pytest.mark.parametrize("part_leaves", [1, 4, 8])
def test_rounds_do_not_show(part_leaves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A workspace that holds one request's parts, or those of three."""
    plain, held = run_case(RAGGED, "emulator")
    for most in (1, 600_000):
        monkeypatch.setattr(decode, "WORKSPACE_BYTES", most)
        got, _ = run_case(RAGGED, "emulator", held, part_leaves=part_leaves)
        same_answers(f"{most} bytes of workspace", plain, got)


def test_what_the_workspace_held_does_not_show() -> None:
    """One workspace for calls of several shapes, never cleared."""
    workspace = torch.full((1 << 22,), float("nan"))
    cases = (LONG, RAGGED, LONGS[3], LONG, MIXED, LONGS[2], RAGGED)
    for turn, case in enumerate(cases):
        held_before = workspace.clone()
        alone, held = run_case(case, "emulator", part_leaves=(1, 4)[turn % 2])
        shared, _ = run_case(case, "emulator", held, part_leaves=(1, 4)[turn % 2], workspace=workspace)
        same_answers(f"call {turn}", alone, shared)
        assert not torch.equal(workspace.view(torch.int32), held_before.view(torch.int32))
