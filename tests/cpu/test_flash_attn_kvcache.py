"""``flash_attn_with_kvcache`` on CPU tensors: what it returns, and what it leaves in the caches."""

from __future__ import annotations

import pytest

from tests.helpers.kvcache import Step, call, check, run_of
from tests.helpers.kvcache_cases import name, steps


@pytest.mark.parametrize("step", list(steps()), ids=name)
def test_against_the_oracle(step: Step) -> None:
    run = run_of(step)
    check(step, run, *call(run))
