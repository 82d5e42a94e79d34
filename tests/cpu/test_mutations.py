"""Deliberate mistakes in the kernels (tests/emulator/mutations*.py): every one is caught, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from skimattn.codegen.spec import KernelSpec

from tests.emulator import SCHEDULES, EmulatedKernel, EmulatorError, compile_kernel
from tests.emulator.mutation import RESULT, Mutation
from tests.emulator.mutation_decode import DecodeMutation
from tests.emulator.mutations import MUTATIONS as MUTATIONS_SM90
from tests.emulator.mutations_d96 import MUTATIONS_D96
from tests.emulator.mutations_decode import MUTATIONS_DECODE
from tests.emulator.mutations_decode_e4m3 import MUTATIONS_DECODE_E4M3
from tests.emulator.mutations_e4m3 import MUTATIONS_E4M3
from tests.emulator.mutations_few_rows import MUTATIONS_FEW_ROWS
from tests.emulator.mutations_last_keys import MUTATIONS_LAST_KEYS
from tests.emulator.mutations_mla import MUTATIONS_MLA
from tests.emulator.mutations_sm100 import MUTATIONS_SM100
from tests.emulator.mutations_sm100_decode import MUTATIONS_SM100_DECODE
from tests.helpers.cases import Case
from tests.helpers.check import assert_same_bits, check
from tests.helpers.decode_properties import same_answers
from tests.helpers.run import run_case

MUTATIONS = (
    *MUTATIONS_SM90,
    *MUTATIONS_E4M3,
    *MUTATIONS_DECODE,
    *MUTATIONS_DECODE_E4M3,
    *MUTATIONS_FEW_ROWS,
    *MUTATIONS_LAST_KEYS,
    *MUTATIONS_MLA,
    *MUTATIONS_SM100,
    *MUTATIONS_SM100_DECODE,
    *MUTATIONS_D96,
)
CASES = {mutation.case.name: mutation.case for mutation in MUTATIONS}
PARTS = {mutation.case.name: (1, 4, 8) for mutation in MUTATIONS_DECODE}


def name_of(mutation: Mutation) -> str:
    return f"{mutation.case.name} {mutation.name}"


def parts_of(mutation: Mutation) -> tuple[int, ...]:
    return mutation.parts if isinstance(mutation, DecodeMutation) else (0,)


def run_in_parts(case: Case, parts: tuple[int, ...], twin: Case | None = None, **options: Any) -> None:
    """The first run is checked; the others give its bits, and so does the twin."""
    first, held = run_case(case, "emulator", part_leaves=parts[0], **options)
    check(first, held)
    for leaves in parts[1:]:
        again, _ = run_case(case, "emulator", held, part_leaves=leaves, **options)
        same_answers(f"parts of {parts[0]} and {leaves}", first, again)
    if twin is not None:
        assert_same_bits("the twin", first, run_case(twin, "emulator", held, part_leaves=parts[0], **options)[0])


def caught_by(mutation: Mutation, schedule: str) -> tuple[str, str]:
    """How a mutated kernel is caught, and the words; ("", "") if it is not."""
    headers: list[str] = []

    def patch(header: str, text: str) -> str:
        headers.append(header)
        return mutation.apply(header, text)

    def compiled(spec: KernelSpec) -> EmulatedKernel:
        return compile_kernel(spec, source_override=patch)

    try:
        options = options_of(mutation.case) | {"schedule": schedule, "compiled": compiled}
        run_in_parts(mutation.case, parts_of(mutation), getattr(mutation, "twin", None), **options)
    except EmulatorError as error:
        found = error.kind, error.message
    except AssertionError as error:
        found = RESULT, str(error)
    else:
        found = "", ""
    assert mutation.header in headers, f"{mutation.name}: no kernel includes {mutation.header}"
    return found


def options_of(case: Case) -> dict[str, Any]:
    """Of mistakes in decode, one multiprocessor: CTAs take several items each."""
    return {"sms": 1} if case.name in PARTS else {}


TURNS = {name: SCHEDULES[index % len(SCHEDULES)] for index, name in enumerate(CASES)}


def in_schedules(value: Any, case: Case, name: str) -> Iterator[Any]:
    """Of every case in one schedule, dealt out in turn; with ``-m exhaustive`` in the others.

    So a mistake is looked for in a schedule in which the same case passes without it.
    """
    for schedule in SCHEDULES:
        marks = () if TURNS[case.name] == schedule else (pytest.mark.exhaustive,)
        yield pytest.param(value, schedule, id=f"{name.replace(' ', '-')}-{schedule}", marks=marks)


EVERY_MUTATION = [one for mutation in MUTATIONS for one in in_schedules(mutation, mutation.case, name_of(mutation))]
EVERY_CASE = [one for case in CASES.values() for one in in_schedules(case, case, case.name)]


@pytest.mark.parametrize(("mutation", "schedule"), EVERY_MUTATION)
def test_mutation_is_caught(mutation: Mutation, schedule: str) -> None:
    kind, words = caught_by(mutation, schedule)
    assert kind, f"{mutation.name}: nothing noticed"
    assert kind in mutation.kinds, f"{mutation.name}: {kind}: {words}"


@pytest.mark.parametrize(("case", "schedule"), EVERY_CASE)
def test_unmutated_kernel_passes(case: Case, schedule: str) -> None:
    run_in_parts(case, PARTS.get(case.name, (0,)), schedule=schedule, seed=1, **options_of(case))


def test_names_are_unique() -> None:
    assert len({name_of(mutation) for mutation in MUTATIONS}) == len(MUTATIONS)
    assert min(map(len, (MUTATIONS_SM90, MUTATIONS_DECODE, MUTATIONS_SM100))) >= 10


def test_text_that_is_gone_fails() -> None:
    with pytest.raises(LookupError, match="expected 'not there' once in"):
        Mutation("x", MUTATIONS[0].header, "not there", "", MUTATIONS[0].case, ()).apply(MUTATIONS[0].header, "text")
