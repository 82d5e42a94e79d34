"""Decode over 8-bit caches with operands swapped, which groups of few rows are, beside groups that are not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.helpers.bodies import name, run_and_check, run_planted
from tests.helpers.cases import Case, contents
from tests.helpers.check import bits
from tests.helpers.decode_properties import batch_does_not_matter, same_answers, ways_agree
from tests.helpers.few_rows_cases import RAGGED, SIZES, few_rows_cases, few_rows_pattern_cases
from tests.helpers.properties import Target
from tests.helpers.run import run_case

EMULATOR = Target("emulator")


@pytest.mark.parametrize("case", few_rows_cases(), ids=name)
def test_rows_of_a_group(case: Case) -> None:
    run_and_check(case, "emulator", schedule=("late", "random", "early")[case.seed % 3], seed=case.seed, sms=1)


@pytest.mark.parametrize("case", few_rows_pattern_cases(), ids=name)
def test_planted_patterns(case: Case) -> None:
    run_planted(case, "emulator")


@pytest.mark.parametrize("skip", ["dense", "stat"])
def test_both_ways_in_one_call(skip: str) -> None:
    """One CTA that takes items of both kinds in turn, in any order and schedule; parts of one leaf and of four."""
    ways = (
        {"part_leaves": 1, "sms": 1, "schedule": "random", "seed": 1},
        {"part_leaves": 4, "sms": 1, "schedule": "early"},
        {"part_leaves": 4, "sms": 132, "schedule": "late"},
    )
    ways_agree(replace(RAGGED, skip=skip), EMULATOR, ways)


def test_requests_alone_are_as_in_batches() -> None:
    batch_does_not_matter(RAGGED, EMULATOR, (3,))


@pytest.mark.parametrize("power", [-50, -20, 20, 50])
def test_size_of_queries_does_not_show(power: int) -> None:
    """bf16 queries are multiplied in fp16, by a power of two for each row: large and small ones give the same bits."""
    held = contents(SIZES)
    plain, _ = run_case(SIZES, "emulator", held)
    for one in held:
        one.q *= 2.0**power
    assert SIZES.scale is not None
    other, _ = run_case(replace(SIZES, scale=SIZES.scale * 2.0**-power), "emulator", held)
    same_answers(f"2^{power}", plain, other)


def test_rows_of_other_sizes_do_not_show() -> None:
    """Of rows that share a group, one is much larger: the others keep their bits."""
    case = replace(SIZES, skip="dense")
    held = contents(case)
    plain, _ = run_case(case, "emulator", held)
    held[0].q[1, 3] *= 2.0**40
    other, _ = run_case(case, "emulator", held)
    for key in ("out", "lse"):
        same = bits(plain.rows(key, 0)) == bits(other.rows(key, 0))
        rows = same.reshape(2, 8, -1).all(-1)
        assert rows.sum() == 15 and not rows[1, 3], key


def test_infinite_and_nan_queries() -> None:
    """They reach their own rows only."""
    case = replace(SIZES, skip="dense")
    held = contents(case)
    plain, _ = run_case(case, "emulator", held)
    held[0].q[0, 2, 5] = torch.inf
    held[0].q[1, 6, 5] = torch.nan
    out = run_case(case, "emulator", held)[0].rows("out", 0)
    touched = torch.zeros(2, 8, dtype=torch.bool)
    touched[0, 2] = touched[1, 6] = True
    assert out[touched].isnan().any(-1).all()
    assert torch.equal(bits(out[~touched]), bits(plain.rows("out", 0)[~touched]))
