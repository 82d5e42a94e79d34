"""The rendered SM100 kernels on the emulator: every pair of kernel features, patterns, shapes, boundaries, properties.

The rest of the cases that SM90 runs, and more, run with ``-m exhaustive`` (test_kernels_exhaustive.py).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.helpers.bodies import each_property, name, run_and_check, run_as_dealt, run_boundary, run_planted
from tests.helpers.boundary import Boundary, boundaries
from tests.helpers.cases import Case
from tests.helpers.catalogue import kernel_pair_cases
from tests.helpers.named_cases import device_cases, pattern_cases, shape_cases
from tests.helpers.properties import Target, repeated_runs

TARGETS = (Target("emulator", "sm100"), Target("emulator", "sm100", "e4m3"))
PATTERNS = pattern_cases("sm100")[::3]
SHAPES = [
    case
    for case in shape_cases("sm100")
    if case.name.startswith(("tall", "deep-skip", "deep-causal", "many-r", "uneven", "pages-of", "chunks", "custom"))
][::2]


@pytest.mark.parametrize("case", kernel_pair_cases("sm100"), ids=name)
def test_kernel_pairs(case: Case) -> None:
    run_as_dealt(case)


@pytest.mark.parametrize("case", PATTERNS, ids=name)
def test_planted_patterns(case: Case) -> None:
    run_planted(case, "emulator")


@pytest.mark.parametrize("case", [*SHAPES, *device_cases("sm100")], ids=name)
def test_shapes_and_values_of_devices(case: Case) -> None:
    run_and_check(case, "emulator", sms=5)


@pytest.mark.parametrize("boundary", boundaries("sm100")[::2], ids=name)
def test_boundaries(boundary: Boundary) -> None:
    run_boundary(boundary, "emulator")


@each_property(TARGETS)
def test_property(target: Target, holds: Callable[[Target], None]) -> None:
    holds(target)


def test_schedules_seeds_and_grids_do_not_matter() -> None:
    schedules = [{"schedule": schedule, "seed": seed} for schedule in ("early", "random") for seed in (0, 1)]
    repeated_runs(TARGETS[0], [*schedules, {"sms": 1}, {"sms": 132}, {"heads_in_l2": 1}])
