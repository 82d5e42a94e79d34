"""``flash_attn_with_kvcache`` on CPU tensors: what it returns, and what it leaves in the caches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from skimattn import Params
from skimattn._call.validate import validate
from skimattn._launch.buffers import make_buffers
from skimattn._launch.plan import make_plan
from skimattn._select.dispatch import spec_of
from skimattn._select.kernels import unbuilt_row
from skimattn.flash_attn_interface import _shared

from tests.emulator import run_plan
from tests.helpers.flash_attn import Seen
from tests.helpers.kvcache import Step, call, check, run_of
from tests.helpers.kvcache_cases import name, steps
from tests.helpers.run import emulated, extent


@pytest.mark.parametrize("step", list(steps()), ids=name)
def test_against_the_oracle(step: Step) -> None:
    run = run_of(step)
    check(step, run, *call(run))


@pytest.mark.parametrize("changes", [{}, {"layout": "heads first"}, {"indexed": True}], ids=str)
def test_kernels_begin_behind_the_padding(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """On the emulator, which finds what is read outside of a tensor; what is not a key is NaN."""

    def emulate(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lse: torch.Tensor, **arguments: Any) -> torch.Tensor:
        out = torch.empty_like(q)
        problem = validate(Params(q, k, v, out=out, lse=lse, **arguments))
        spec = spec_of(problem, "sm90")
        counter = torch.zeros(4, dtype=torch.int32)
        buffers = make_buffers(problem.params, problem.out_shape)
        plan = make_plan(problem, unbuilt_row(spec), buffers, sm_count=3, work_counter_address=counter.data_ptr())
        owned = [q, k, v, out, lse, counter, *(x for x in arguments.values() if isinstance(x, torch.Tensor))]
        run_plan(emulated(spec), plan.kernels[0], ranges=[(x.data_ptr(), extent(x)) for x in owned])
        return out

    monkeypatch.setattr(_shared, "attention", emulate)
    step = Step(
        seen=Seen(right=0), arguments=(("causal", True),), rows=(3, 3, 3), leftpad=(5, 0, 31), heads=(4, 2), **changes
    )
    run = run_of(step)
    check(step, run, *call(run))
