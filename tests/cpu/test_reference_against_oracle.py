"""The CPU reference, called through ``launch`` as anybody would, against the oracle: the same cases as the kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.helpers.boundary import Boundary, boundaries
from tests.helpers.cases import Case
from tests.helpers.catalogue import pairwise_cases
from tests.helpers.check import check
from tests.helpers.named_cases import pattern_cases, shape_cases
from tests.helpers.properties import Target, properties_of
from tests.helpers.run import run_case

ARCHS = ("sm90", "sm100")
TARGETS = (Target("reference"), Target("reference", "sm100"), Target("reference", "sm100", "e4m3"))
CASES = [case for arch in ARCHS for case in (*pairwise_cases(arch), *pattern_cases(arch), *shape_cases(arch))]


def name(value: Case | Boundary) -> str:
    case = value if isinstance(value, Case) else value.case
    return f"{case.arch}-{case.name}"


@pytest.mark.parametrize("case", CASES, ids=name)
def test_cases(case: Case) -> None:
    result, held = run_case(case, "reference")
    check(result, held)


@pytest.mark.parametrize("boundary", [case for arch in ARCHS for case in boundaries(arch)], ids=name)
def test_boundaries(boundary: Boundary) -> None:
    result, held = run_case(boundary.case, "reference", boundary.held)
    for index, answer in enumerate(check(result, held)):
        assert answer.skip_map[0].tolist() == [list(boundary.tiles[index])] * 2


@pytest.mark.parametrize(
    ("target", "holds"),
    [(target, holds) for target in TARGETS for holds in properties_of(target)],
    ids=lambda value: f"{value.arch}-{value.dtype}" if isinstance(value, Target) else value.__name__,
)
def test_property(target: Target, holds: Callable[[Target], None]) -> None:
    holds(target)
