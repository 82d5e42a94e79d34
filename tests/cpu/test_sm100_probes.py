"""The probes for a B200's first day, on the emulator, whose tcgen05 agrees with a numpy model written apart from it."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest

from tests.emulator import EmulatorError
from tests.helpers.placement import addresses
from tests.helpers.probe_run import on_emulator
from tests.helpers.probes import LANES, Program, attention_steps, differences, fill, programs, run_model
from tests.helpers.walks import IMAGE_BYTES

BY_SIZE = {
    "16-bit": tuple(program for program in programs() if program.dtype != "e4m3"),
    "8-bit": tuple(program for program in programs() if program.dtype == "e4m3"),
}


def parts(size: str, count: int = 12) -> list[tuple[Program, ...]]:
    """Programs of one element size in launches of a few CTAs, whose images take 128 KB each."""
    found = BY_SIZE[size]
    return [found[start : start + count] for start in range(0, len(found), count)]


LAUNCHES = [part for size in BY_SIZE for part in parts(size)]


def label(part: tuple[Program, ...]) -> str:
    return f"{part[0].name}-and-{len(part) - 1}"


@pytest.mark.parametrize("part", LAUNCHES, ids=label)
def test_the_emulator_agrees_with_the_model(part: tuple[Program, ...]) -> None:
    assert on_emulator(part) == {}


@pytest.mark.parametrize("schedule", ["early", "random"])
@pytest.mark.parametrize("size", BY_SIZE)
def test_chains_under_other_schedules(size: str, schedule: str) -> None:
    chains = tuple(program for program in BY_SIZE[size] if program.name.startswith(("order", "scores")))
    assert on_emulator(chains[:6], schedule=schedule, seed=3) == {}


def test_issue_order_is_an_assumption() -> None:
    """By the ISA alone S may be written before P.V has read P, which lies in its place; the strict emulator says so."""
    chains = {program.name: program for program in programs()}
    with pytest.raises(EmulatorError) as caught:
        on_emulator((chains["order-bf16-d128"],), strict_products=True)
    assert caught.value.kind == "early-overwrite", caught.value
    assert on_emulator((chains["scores-bf16-d128"],), strict_products=True) == {}


def test_programs_read_inside_the_image() -> None:
    for program in programs():
        for step in program.steps:
            product = step.product
            for where, rows in ((step.a, product.m), (step.b, product.n)):
                if isinstance(where, tuple):
                    found = addresses(where[0], where[1], rows, product.depth)
                    assert found.min() >= 0 and found.max() < IMAGE_BYTES, program.name


def test_a_wrong_model_is_noticed() -> None:
    """The images are random: reading 32 bytes further on does not go unseen."""
    qk, _ = attention_steps("bf16", 64)
    right = Program("right", "", "bf16", qk)
    moved = tuple(replace(step, b=(step.b[0], step.b[1] ^ 32)) for step in qk)
    images, before = fill((right,))
    after = run_model(replace(right, steps=moved), images[0], before[0])
    assert differences((right,), images, before, after[None])["right"] > LANES * 64
    assert np.array_equal(after[:, 128:], before[0][:, 128:])


def test_every_program_has_a_name_of_its_own() -> None:
    names = sorted(program.name for program in programs())
    assert all(len(list(group)) == 1 for _, group in groupby(names))
    assert {program.shows for program in programs()} >= {"operand B in shared memory", "accumulation over K"}
