"""The cases of the emulator on a GPU, through ``launch``, against the same oracle."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.helpers.boundary import Boundary, boundaries
from tests.helpers.cases import Case
from tests.helpers.catalogue import (
    default_set_cases,
    device_cases,
    fuzz_case,
    kind_cases,
    pairwise_cases,
    pattern_cases,
    shape_cases,
)
from tests.helpers.check import check
from tests.helpers.properties import PROPERTIES, kinds_agree
from tests.helpers.run import run_case

FUZZ = 200


def name(value: Case | Boundary) -> str:
    return value.name if isinstance(value, Case) else value.case.name


@pytest.mark.parametrize("case", [*pairwise_cases(), *pattern_cases(), *shape_cases(), *device_cases()], ids=name)
def test_cases(case: Case) -> None:
    result, held = run_case(case, "gpu")
    check(result, held)


@pytest.mark.parametrize("case", default_set_cases(), ids=name)
def test_default_set(case: Case) -> None:
    result, held = run_case(case, "gpu")
    check(result, held)


@pytest.mark.parametrize("case", kind_cases(), ids=name)
def test_kinds_agree(case: Case) -> None:
    kinds_agree(case, "gpu")


@pytest.mark.parametrize("seed", range(FUZZ))
def test_fuzz(seed: int) -> None:
    result, held = run_case(fuzz_case(seed), "gpu")
    check(result, held)


@pytest.mark.parametrize("boundary", boundaries(), ids=name)
def test_boundaries(boundary: Boundary) -> None:
    result, held = run_case(boundary.case, "gpu", boundary.held)
    for index, answer in enumerate(check(result, held)):
        assert answer.skip_map[0].tolist() == [list(boundary.tiles[index])] * 2


@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_property(holds: Callable[[str], None]) -> None:
    holds("gpu")
