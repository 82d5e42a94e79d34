"""Every kernel of the default sets, and random calls, on the emulator. Run with ``-m exhaustive``.

The ordinary run has all named and pairwise cases of 16 bits on SM90, and a covering part of the others. Here are all.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.helpers.boundary import Boundary, boundaries
from tests.helpers.cases import Case
from tests.helpers.catalogue import default_set_cases, fuzz_case, kind_cases, pairwise_cases
from tests.helpers.check import check
from tests.helpers.named_cases import device_cases, pattern_cases, shape_cases
from tests.helpers.oracle import KEPT, SKIPPED
from tests.helpers.properties import PROPERTIES, Target, kinds_agree
from tests.helpers.run import run_case

pytestmark = pytest.mark.exhaustive
ARCHS = ("sm90", "sm100")
SCHEDULES = ("late", "early", "random")
BYTES_OF_SM90 = [case for case in pairwise_cases() if case.dtype == "e4m3"]
ALL_OF_SM100 = (*pairwise_cases("sm100"), *shape_cases("sm100"), *device_cases("sm100"))


def name(value: Case | Boundary) -> str:
    case = value if isinstance(value, Case) else value.case
    return f"{case.arch}-{case.name}"


@pytest.mark.parametrize("case", [case for arch in ARCHS for case in default_set_cases(arch)], ids=name)
def test_default_set(case: Case) -> None:
    result, held = run_case(case, "emulator")
    check(result, held)


@pytest.mark.parametrize("case", [case for arch in ARCHS for case in kind_cases(arch)], ids=name)
def test_kinds_agree(case: Case) -> None:
    kinds_agree(case, Target("emulator"))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("seed", range(300))
def test_fuzz(seed: int, arch: str) -> None:
    schedule = SCHEDULES[seed % 3]
    result, held = run_case(fuzz_case(seed, arch), "emulator", schedule=schedule, seed=seed, sms=1 + seed % 5)
    check(result, held)


@pytest.mark.parametrize("case", [*ALL_OF_SM100, *BYTES_OF_SM90], ids=name)
def test_cases_that_the_ordinary_run_samples(case: Case) -> None:
    result, held = run_case(case, "emulator", schedule=SCHEDULES[case.seed % 3], seed=case.seed, sms=1 + case.seed % 4)
    check(result, held)


@pytest.mark.parametrize("case", pattern_cases("sm100"), ids=name)
def test_sm100_patterns(case: Case) -> None:
    result, held = run_case(case, "emulator")
    answers = check(result, held)
    assert any((answer.skip_map == SKIPPED).any() for answer in answers), "nothing to skip: the pattern is not planted"
    assert any((answer.skip_map == KEPT).any() for answer in answers)


@pytest.mark.parametrize("boundary", boundaries("sm100"), ids=name)
def test_sm100_boundaries(boundary: Boundary) -> None:
    result, held = run_case(boundary.case, "emulator", boundary.held)
    for index, answer in enumerate(check(result, held)):
        assert answer.skip_map[0].tolist() == [list(boundary.tiles[index])] * 2


@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_sm100_fp16_properties(holds: Callable[[Target], None]) -> None:
    holds(Target("emulator", "sm100", "fp16"))
