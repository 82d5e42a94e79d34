"""Bodies of tests that run whole cases, on whichever backend."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch

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


# Of every kernel that multiplies V transposed, and some that fill it with zeros.
DIMS_OF_E4M3 = ((64, 64), (128, 128), (192, 128), (256, 256), (48, 48), (160, 144), (256, 64))


def run_one_key(dims: tuple[int, int], backend: str) -> None:
    """8-bit rows that see one key each have its value, exactly: P is one, and no sum rounds. 300 keys take turns."""
    case = Case("one-key", dtype="e4m3", out_dtype="fp16", mask="window", window=(0, 0), skip="dense", heads_q=1)
    case = replace(case, head_dim=dims[0], head_dim_v=dims[1], lens=((300, 300),))
    result, held = run_case(case, backend)
    assert torch.equal(result.rows("out", 0).float(), held[0].v.float())
    assert len(held[0].v.view(torch.uint8).unique(dim=0)) == 300, "two keys cannot be told apart"


def each_property(targets: Iterable[Target]) -> pytest.MarkDecorator:
    """Parametrises a test by ``target`` and ``holds``: every property on every target."""
    return pytest.mark.parametrize(
        ("target", "holds"),
        [(target, holds) for target in targets for holds in properties_of(target)],
        ids=lambda value: f"{value.arch}-{value.dtype}" if isinstance(value, Target) else value.__name__,
    )
