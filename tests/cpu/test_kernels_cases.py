"""The rendered SM90 kernels on the emulator, against the oracle: the pairwise set and the planted patterns.

Most of those with 8-bit operands are in test_sm90_e4m3.py.
"""

from __future__ import annotations

import pytest

from tests.helpers.bodies import name, run_and_check, run_as_dealt, run_boundary, run_planted
from tests.helpers.boundary import Boundary, boundaries
from tests.helpers.cases import Case
from tests.helpers.catalogue import pairwise_cases
from tests.helpers.named_cases import device_cases, pattern_cases, shape_cases


@pytest.mark.parametrize("case", [case for case in pairwise_cases() if case.dtype != "e4m3"], ids=name)
def test_pairwise(case: Case) -> None:
    run_as_dealt(case)


@pytest.mark.parametrize("case", pattern_cases(), ids=name)
def test_planted_patterns(case: Case) -> None:
    run_planted(case, "emulator")


@pytest.mark.parametrize("case", shape_cases(), ids=name)
def test_shapes(case: Case) -> None:
    run_and_check(case, "emulator", sms=5)


@pytest.mark.parametrize("case", device_cases(), ids=name)
def test_values_that_only_a_device_meets(case: Case) -> None:
    run_and_check(case, "emulator")


@pytest.mark.parametrize("boundary", boundaries(), ids=name)
def test_boundaries(boundary: Boundary) -> None:
    run_boundary(boundary, "emulator")
