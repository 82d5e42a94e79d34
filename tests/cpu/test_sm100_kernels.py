"""The rendered SM100 kernels on the emulator: every pair of kernel features, patterns, shapes, boundaries, properties.

The rest of the cases that SM90 runs, and more, run with ``-m exhaustive`` (test_kernels_exhaustive.py).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.helpers.boundary import Boundary, boundaries
from tests.helpers.cases import Case
from tests.helpers.catalogue import kernel_pair_cases
from tests.helpers.check import check
from tests.helpers.named_cases import device_cases, pattern_cases, shape_cases
from tests.helpers.oracle import KEPT, SKIPPED
from tests.helpers.properties import Target, properties_of, repeated_runs
from tests.helpers.run import run_case

SCHEDULES = ("late", "early", "random")
TARGETS = (Target("emulator", "sm100"), Target("emulator", "sm100", "e4m3"))
PATTERNS = pattern_cases("sm100")[::3]
SHAPES = [
    case
    for case in shape_cases("sm100")
    if case.name.startswith(("tall", "deep-skip", "deep-causal", "many-r", "uneven", "pages-of", "chunks", "custom"))
]


def name(value: Case | Boundary) -> str:
    return value.name if isinstance(value, Case) else value.case.name


@pytest.mark.parametrize("case", kernel_pair_cases("sm100"), ids=name)
def test_kernel_pairs(case: Case) -> None:
    result, held = run_case(case, "emulator", schedule=SCHEDULES[case.seed % 3], seed=case.seed, sms=1 + case.seed % 4)
    check(result, held)


@pytest.mark.parametrize("case", PATTERNS, ids=name)
def test_planted_patterns(case: Case) -> None:
    result, held = run_case(case, "emulator")
    answers = check(result, held)
    assert any((answer.skip_map == SKIPPED).any() for answer in answers), "nothing to skip: the pattern is not planted"
    assert any((answer.skip_map == KEPT).any() for answer in answers)


@pytest.mark.parametrize("case", [*SHAPES, *device_cases("sm100")], ids=name)
def test_shapes_and_values_of_devices(case: Case) -> None:
    result, held = run_case(case, "emulator", sms=5)
    check(result, held)


@pytest.mark.parametrize("boundary", boundaries("sm100")[::2], ids=name)
def test_boundaries(boundary: Boundary) -> None:
    result, held = run_case(boundary.case, "emulator", boundary.held)
    for index, answer in enumerate(check(result, held)):
        assert answer.skip_map[0].tolist() == [list(boundary.tiles[index])] * 2


@pytest.mark.parametrize(
    ("target", "holds"),
    [(target, holds) for target in TARGETS for holds in properties_of(target)],
    ids=lambda value: value.dtype if isinstance(value, Target) else value.__name__,
)
def test_property(target: Target, holds: Callable[[Target], None]) -> None:
    holds(target)


def test_schedules_seeds_and_grids_do_not_matter() -> None:
    schedules = [{"schedule": schedule, "seed": seed} for schedule in ("early", "random") for seed in (0, 1)]
    repeated_runs(TARGETS[0], [*schedules, {"sms": 1}, {"sms": 132}, {"heads_in_l2": 1}])
