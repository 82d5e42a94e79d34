"""MLA decode in latent form: against the oracle, on the reference and the emulator; bits; and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from skimattn import ArgumentError, NoKernelError, Params, explain, launch
from skimattn._call.validate import validate
from skimattn._launch.planner import Planner
from skimattn._select import kernels
from skimattn._select.dispatch import specs_of

from tests.emulator import SCHEDULES, compile_kernel
from tests.emulator.mutations_mla import MUTATIONS_MLA
from tests.helpers.bodies import run_and_check
from tests.helpers.cases import Case, contents
from tests.helpers.check import assert_same_bits
from tests.helpers.mla_cases import MLA_CASES
from tests.helpers.run import run_case

CASES = {case.name: case for case in MLA_CASES}


@pytest.mark.parametrize("case", MLA_CASES, ids=CASES)
def test_reference(case: Case) -> None:
    run_and_check(case, "reference")


@pytest.mark.parametrize("case", MLA_CASES, ids=CASES)
def test_emulator(case: Case) -> None:
    schedule = SCHEDULES[len(case.name) % 3]
    run_and_check(case, "emulator", schedule=schedule, seed=1, sms=1 + len(case.name) % 4)


@pytest.mark.parametrize("name", ["mla-pages", "mla-ragged"])
def test_a_request_alone_has_the_same_bits(name: str) -> None:
    case = CASES[name]
    held = contents(case)
    together, _ = run_case(case, "emulator", held)
    for index in (1, 2):
        alone, _ = run_case(case.alone(index), "emulator", [held[index]], sms=1)
        assert_same_bits(name, alone, together, [(0, index)])


def test_leaves_merged_by_one_cta_or_apart_have_the_same_bits() -> None:
    case = replace(CASES["mla-twigs"], skip="skip")
    assert_same_bits("twigs", run_case(case, "emulator", sms=1)[0], run_case(case, "emulator", sms=4)[0])


def call(**options: Any) -> Params:
    q, k = torch.zeros(2, 1, 8, 576).bfloat16(), torch.zeros(2, 100, 1, 576).bfloat16()
    return Params(**{"q": q, "k": k, "v": None, **options})


def test_values_may_be_named_or_not() -> None:
    k = torch.zeros(2, 100, 1, 576).bfloat16()
    for v in (None, k[..., :512]):
        out = launch(call(k=k, v=v))
        assert isinstance(out, torch.Tensor) and out.shape == (2, 1, 8, 512)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"v": torch.zeros(2, 100, 1, 512).bfloat16()}, "v: expected None or k"),
        (
            {"q": torch.zeros(2, 1, 8, 320).bfloat16(), "k": torch.zeros(2, 100, 1, 320).bfloat16()},
            "v: expected a torch",
        ),
        ({"k": torch.zeros(2, 100, 2, 576).bfloat16()}, "k: expected one head"),
        ({"q": torch.zeros(2, 33, 64, 576).bfloat16()}, "q: expected at most 2048 rows times heads"),
    ],
)
def test_refused_arguments(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        validate(call(**options))


def test_values_elsewhere_are_refused() -> None:
    k = torch.zeros(2, 100, 1, 576).bfloat16()
    with pytest.raises(ArgumentError, match="v: expected None or k"):
        validate(call(k=k, v=k.clone()[..., :512]))


def test_320_columns_find_no_mla_kernel() -> None:
    q, k = torch.zeros(2, 1, 8, 320).bfloat16(), torch.zeros(2, 100, 1, 320).bfloat16()
    with pytest.raises(ArgumentError, match="q: expected a head_dim"):
        validate(call(q=q, k=k, v=k))


@pytest.mark.parametrize("options", [{"mask": "window", "window_size": (5, 0)}, {"alibi_slopes": torch.zeros(8)}])
def test_no_kernel(options: dict[str, Any]) -> None:
    with pytest.raises(NoKernelError, match="rule mla-"):
        launch(call(**options))


def test_explain() -> None:
    found = explain(call())
    assert found.accepted and found.kernel == "skim_sm90_mla_bf16_d576v512_full_dense" and found.tile == (64, 64)
    assert explain(phase="mla", mask="causal", paged=True).accepted
    assert not explain(phase="mla", mask="window").accepted


def test_parts_are_leaves_or_twigs() -> None:
    for batch in (1, 32, 64):
        q, k = (
            torch.zeros(batch, 1, 128, 576).bfloat16(),
            torch.zeros(batch, 1, 1, 576).bfloat16().expand(-1, 8192, -1, -1),
        )
        problem = validate(Params(q, k, None))
        rows = {phase: kernels.unbuilt_row(spec) for phase, spec in specs_of(problem, "sm90").items()}
        cut = Planner(rows, 132).cutter(problem).cut(batch, 1, 8192)
        assert (cut.part_leaves, cut.groups, cut.parts) == ((1, 2, 8) if batch == 1 else (4, 2, 2))


def test_mutations_are_of_kernels_that_compile() -> None:
    for mutation in MUTATIONS_MLA:
        compile_kernel(mutation.case.spec)
