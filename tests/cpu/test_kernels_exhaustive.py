"""Every kernel of the default set, and random calls, on the emulator. Run with ``-m exhaustive``."""

from __future__ import annotations

import pytest

from tests.helpers.cases import Case
from tests.helpers.catalogue import default_set_cases, fuzz_case, kind_cases
from tests.helpers.check import check
from tests.helpers.properties import Target, kinds_agree
from tests.helpers.run import run_case

pytestmark = pytest.mark.exhaustive


@pytest.mark.parametrize("case", default_set_cases(), ids=lambda case: case.name)
def test_default_set(case: Case) -> None:
    result, held = run_case(case, "emulator")
    check(result, held)


@pytest.mark.parametrize("case", kind_cases(), ids=lambda case: case.name)
def test_kinds_agree(case: Case) -> None:
    kinds_agree(case, Target("emulator"))


@pytest.mark.parametrize("seed", range(300))
def test_fuzz(seed: int) -> None:
    schedule = ("late", "early", "random")[seed % 3]
    result, held = run_case(fuzz_case(seed), "emulator", schedule=schedule, seed=seed, sms=1 + seed % 5)
    check(result, held)
