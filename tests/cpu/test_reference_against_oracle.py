"""The CPU reference, called through ``launch`` as anybody would, against the oracle: the same cases as the kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.helpers.bodies import each_property, name, run_and_check, run_boundary
from tests.helpers.boundary import Boundary, boundaries
from tests.helpers.cases import Case
from tests.helpers.catalogue import pairwise_cases
from tests.helpers.named_cases import pattern_cases, shape_cases
from tests.helpers.properties import Target

ARCHS = ("sm90", "sm100")
TARGETS = (Target("reference"), Target("reference", "sm100"), Target("reference", "sm100", "e4m3"))
CASES = [case for arch in ARCHS for case in (*pairwise_cases(arch), *pattern_cases(arch), *shape_cases(arch))]


def full_name(value: Case | Boundary) -> str:
    return f"{(value if isinstance(value, Case) else value.case).arch}-{name(value)}"


@pytest.mark.parametrize("case", CASES, ids=full_name)
def test_cases(case: Case) -> None:
    run_and_check(case, "reference")


@pytest.mark.parametrize("boundary", [case for arch in ARCHS for case in boundaries(arch)], ids=full_name)
def test_boundaries(boundary: Boundary) -> None:
    run_boundary(boundary, "reference")


@each_property(TARGETS)
def test_property(target: Target, holds: Callable[[Target], None]) -> None:
    holds(target)
