"""Every kernel of the default set on the emulator. Run with ``-m exhaustive``."""

from __future__ import annotations

import pytest

from tests.helpers.cases import Case
from tests.helpers.catalogue import default_set_cases
from tests.helpers.check import check
from tests.helpers.run import run_case

pytestmark = pytest.mark.exhaustive


@pytest.mark.parametrize("case", default_set_cases(), ids=lambda case: case.name)
def test_default_set(case: Case) -> None:
    result, held = run_case(case, "emulator")
    check(result, held)
