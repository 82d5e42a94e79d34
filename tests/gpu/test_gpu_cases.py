"""The cases of the emulator on a GPU, through ``launch``, against the same oracle."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.helpers.boundary import Boundary, boundaries
from tests.helpers.cases import Case
from tests.helpers.catalogue import DTYPES, default_set_cases, fuzz_case, kind_cases, pairwise_cases
from tests.helpers.check import check
from tests.helpers.gpu import gpu_arch
from tests.helpers.named_cases import device_cases, pattern_cases, shape_cases
from tests.helpers.properties import Target, kinds_agree, properties_of
from tests.helpers.run import run_case

FUZZ = 200
ARCH = gpu_arch()
CASES = (*pairwise_cases(ARCH), *pattern_cases(ARCH), *shape_cases(ARCH), *device_cases(ARCH))
TARGETS = [Target("gpu", ARCH, dtype) for dtype in DTYPES[ARCH] if dtype != "fp16"]


def name(value: Case | Boundary) -> str:
    return value.name if isinstance(value, Case) else value.case.name


@pytest.mark.parametrize("case", CASES, ids=name)
def test_cases(case: Case) -> None:
    result, held = run_case(case, "gpu")
    check(result, held)


@pytest.mark.parametrize("case", default_set_cases(ARCH), ids=name)
def test_default_set(case: Case) -> None:
    result, held = run_case(case, "gpu")
    check(result, held)


@pytest.mark.parametrize("case", kind_cases(ARCH), ids=name)
def test_kinds_agree(case: Case) -> None:
    kinds_agree(case, Target("gpu", ARCH))


@pytest.mark.parametrize("seed", range(FUZZ))
def test_fuzz(seed: int) -> None:
    result, held = run_case(fuzz_case(seed, ARCH), "gpu")
    check(result, held)


@pytest.mark.parametrize("boundary", boundaries(ARCH), ids=name)
def test_boundaries(boundary: Boundary) -> None:
    result, held = run_case(boundary.case, "gpu", boundary.held)
    for index, answer in enumerate(check(result, held)):
        assert answer.skip_map[0].tolist() == [list(boundary.tiles[index])] * 2


@pytest.mark.parametrize(
    ("target", "holds"),
    [(target, holds) for target in TARGETS for holds in properties_of(target)],
    ids=lambda value: value.dtype if isinstance(value, Target) else value.__name__,
)
def test_property(target: Target, holds: Callable[[Target], None]) -> None:
    holds(target)
