"""The rendered SM90 kernels on the emulator, against the oracle: the pairwise set and the planted patterns."""

from __future__ import annotations

import pytest

from tests.helpers.boundary import Boundary, boundaries
from tests.helpers.cases import Case
from tests.helpers.catalogue import pairwise_cases
from tests.helpers.check import check
from tests.helpers.named_cases import device_cases, pattern_cases, shape_cases
from tests.helpers.oracle import KEPT, SKIPPED
from tests.helpers.run import run_case

SCHEDULES = ("late", "early", "random")


def name(value: Case | Boundary) -> str:
    return value.name if isinstance(value, Case) else value.case.name


@pytest.mark.parametrize("case", pairwise_cases(), ids=name)
def test_pairwise(case: Case) -> None:
    result, held = run_case(case, "emulator", schedule=SCHEDULES[case.seed % 3], seed=case.seed, sms=1 + case.seed % 4)
    check(result, held)


@pytest.mark.parametrize("case", pattern_cases(), ids=name)
def test_planted_patterns(case: Case) -> None:
    result, held = run_case(case, "emulator")
    answers = check(result, held)
    assert any((answer.skip_map == SKIPPED).any() for answer in answers), "nothing to skip: the pattern is not planted"
    assert any((answer.skip_map == KEPT).any() for answer in answers)


@pytest.mark.parametrize("case", shape_cases(), ids=name)
def test_shapes(case: Case) -> None:
    result, held = run_case(case, "emulator", sms=5)
    check(result, held)


@pytest.mark.parametrize("case", device_cases(), ids=name)
def test_values_that_only_a_device_meets(case: Case) -> None:
    result, held = run_case(case, "emulator")
    check(result, held)


@pytest.mark.parametrize("boundary", boundaries(), ids=name)
def test_boundaries(boundary: Boundary) -> None:
    result, held = run_case(boundary.case, "emulator", boundary.held)
    for index, answer in enumerate(check(result, held)):
        assert answer.skip_map[0].tolist() == [list(boundary.tiles[index])] * 2
