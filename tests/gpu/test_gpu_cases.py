"""The cases of the emulator on a GPU, through ``launch``, against the same oracle."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.helpers.bodies import DIMS_OF_E4M3, each_property, name, run_and_check, run_boundary, run_one_key
from tests.helpers.boundary import Boundary, boundaries
from tests.helpers.cases import Case
from tests.helpers.catalogue import DTYPES, default_set_cases, fuzz_case, kind_cases, pairwise_cases
from tests.helpers.gpu import gpu_arch
from tests.helpers.named_cases import device_cases, pattern_cases, shape_cases
from tests.helpers.properties import Target, kinds_agree

FUZZ = 200
ARCH = gpu_arch()
CASES = (*pairwise_cases(ARCH), *pattern_cases(ARCH), *shape_cases(ARCH), *device_cases(ARCH))
TARGETS = [Target("gpu", ARCH, dtype) for dtype in DTYPES if dtype != "fp16"]


@pytest.mark.parametrize("case", CASES, ids=name)
def test_cases(case: Case) -> None:
    run_and_check(case, "gpu")


@pytest.mark.parametrize("dims", DIMS_OF_E4M3, ids=str)
def test_each_probability_meets_the_value_of_its_key(dims: tuple[int, int]) -> None:
    run_one_key(dims, "gpu")


@pytest.mark.parametrize("case", default_set_cases(ARCH), ids=name)
def test_default_set(case: Case) -> None:
    run_and_check(case, "gpu")


@pytest.mark.parametrize("case", kind_cases(ARCH), ids=name)
def test_kinds_agree(case: Case) -> None:
    kinds_agree(case, Target("gpu", ARCH))


@pytest.mark.parametrize("seed", range(FUZZ))
def test_fuzz(seed: int) -> None:
    run_and_check(fuzz_case(seed, ARCH), "gpu")


@pytest.mark.parametrize("boundary", boundaries(ARCH), ids=name)
def test_boundaries(boundary: Boundary) -> None:
    run_boundary(boundary, "gpu")


@each_property(TARGETS)
def test_property(target: Target, holds: Callable[[Target], None]) -> None:
    holds(target)
