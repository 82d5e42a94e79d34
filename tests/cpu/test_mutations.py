"""Deliberate mistakes in the kernels (tests/emulator/mutations*.py): every one is caught, and nothing else is."""

from __future__ import annotations

import pytest

from tests.emulator import SCHEDULES, EmulatorError, compile_kernel
from tests.emulator.mutation import RESULT, Mutation
from tests.emulator.mutations import MUTATIONS as MUTATIONS_SM90
from tests.emulator.mutations_mla import MUTATIONS_MLA
from tests.emulator.mutations_sm100 import MUTATIONS_SM100
from tests.helpers.cases import Case
from tests.helpers.check import check
from tests.helpers.run import run_case

MUTATIONS = (*MUTATIONS_SM90, *MUTATIONS_MLA, *MUTATIONS_SM100)
CASES = {mutation.case.name: mutation.case for mutation in MUTATIONS}


def name_of(mutation: Mutation) -> str:
    return f"{mutation.case.arch} {mutation.name}"


def caught_by(mutation: Mutation, schedule: str) -> tuple[str, str]:
    """How a mutated kernel is caught, and the words; ("", "") if it is not."""
    headers: list[str] = []

    def patch(header: str, text: str) -> str:
        headers.append(header)
        return mutation.apply(header, text)

    kernel = compile_kernel(mutation.case.spec, source_override=patch)
    assert mutation.header in headers, f"{mutation.name}: the kernel does not include {mutation.header}"
    try:
        check(*run_case(mutation.case, "emulator", kernel=kernel, schedule=schedule))
    except EmulatorError as error:
        return error.kind, error.message
    except AssertionError as error:
        return RESULT, str(error)
    return "", ""


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: name_of(mutation).replace(" ", "-"))
def test_mutation_is_caught(mutation: Mutation, schedule: str) -> None:
    kind, words = caught_by(mutation, schedule)
    assert kind, f"{mutation.name}: nothing noticed"
    assert kind in mutation.kinds, f"{mutation.name}: {kind}: {words}"


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_unmutated_kernel_passes(case: Case, schedule: str) -> None:
    check(*run_case(case, "emulator", schedule=schedule, seed=1))


def test_names_are_unique() -> None:
    assert len({name_of(mutation) for mutation in MUTATIONS}) == len(MUTATIONS)
    assert len(MUTATIONS_SM90) >= 10 and len(MUTATIONS_SM100) >= 10


def test_text_that_is_gone_fails() -> None:
    with pytest.raises(LookupError, match="expected 'not there' once in"):
        Mutation("x", MUTATIONS[0].header, "not there", "", MUTATIONS[0].case, ()).apply(MUTATIONS[0].header, "text")
