"""Guarantees between runs of the rendered SM90 kernels on the emulator."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.helpers.properties import PROPERTIES, Target, repeated_runs

EMULATOR = Target("emulator")


@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_property(holds: Callable[[Target], None]) -> None:
    holds(EMULATOR)


def test_schedules_seeds_and_grids_do_not_matter() -> None:
    schedules = [{"schedule": schedule, "seed": seed} for schedule in ("early", "late", "random") for seed in (0, 1)]
    repeated_runs(EMULATOR, [*schedules, {"sms": 1}, {"sms": 2, "seed": 5}, {"sms": 132}, {"heads_in_l2": 1}])
