"""Bodies of tests that run whole cases, on whichever backend."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from .boundary import Boundary
from .cases import Case
from .check import check
from .oracle import KEPT, SKIPPED
from .properties import Target, properties_of
from .run import run_case

_SCHEDULES = ("late", "early", "random")


def name(value: Case | Boundary) -> str:
    """What a case is called among those of one architecture."""
    return value.name if isinstance(value, Case) else value.case.name


def run_and_check(case: Case, backend: str, **options: Any) -> None:
    """The answer is the oracle's."""
    result, held = run_case(case, backend, **options)
    check(result, held)


def run_as_dealt(case: Case) -> None:
    """On the emulator, with a schedule and a number of multiprocessors that follow from the case's seed."""
    run_and_check(case, "emulator", schedule=_SCHEDULES[case.seed % 3], seed=case.seed, sms=1 + case.seed % 4)


def run_planted(case: Case, backend: str) -> None:
    """Likewise the oracle's, and some tiles are skipped and some kept."""
    result, held = run_case(case, backend)
    answers = check(result, held)
    assert any((answer.skip_map == SKIPPED).any() for answer in answers), "nothing to skip: the pattern is not planted"
    assert any((answer.skip_map == KEPT).any() for answer in answers)


def run_boundary(boundary: Boundary, backend: str) -> None:
    """The tiles at the edge of a decision are those worked out by hand."""
    result, held = run_case(boundary.case, backend, boundary.held)
    for index, answer in enumerate(check(result, held)):
        assert answer.skip_map[0].tolist() == [list(boundary.tiles[index])] * 2


def each_property(targets: Iterable[Target]) -> pytest.MarkDecorator:
    """Parametrises a test by ``target`` and ``holds``: every property on every target."""
    return pytest.mark.parametrize(
        ("target", "holds"),
        [(target, holds) for target in targets for holds in properties_of(target)],
        ids=lambda value: f"{value.arch}-{value.dtype}" if isinstance(value, Target) else value.__name__,
    )
