"""``flash_attn_with_kvcache`` on CPU tensors: what it returns, and what it leaves in the caches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from skimattn import Params
from skimattn._call.validate import validate
from skimattn._launch.buffers import make_buffers
from skimattn._launch.planner import Planner, make_plan
from skimattn._select.dispatch import specs_of
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
@pytest.mark.parametrize(("rows", "phase"), [(3, "decode"), (40, "prefill")])
def test_kernels_begin_behind_the_padding(
    changes: dict[str, Any], rows: int, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the emulator, which finds what is read outside of a tensor; what is not a key is NaN."""

    def emulate(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lse: torch.Tensor, **arguments: Any) -> torch.Tensor:
        out = torch.empty_like(q)
        problem = validate(Params(q, k, v, out=out, lse=lse, **arguments))
        kernels = {phase: unbuilt_row(spec) for phase, spec in specs_of(problem, "sm90").items()}
        counter = torch.zeros(4, dtype=torch.int32)
        buffers = make_buffers(problem.params, problem.out_shape, Planner(kernels, 3).workspace_floats(problem))
        plan = make_plan(problem, kernels, buffers, sm_count=3, work_counter_address=counter.data_ptr())
        owned = [q, k, v, out, lse, counter, *(x for x in arguments.values() if isinstance(x, torch.Tensor))]
        owned += [] if buffers.workspace is None else [buffers.workspace]
        for launch in plan.kernels:
            run_plan(emulated(launch.kernel.spec), launch, ranges=[(x.data_ptr(), extent(x)) for x in owned])
        ran.update(launch.kernel.phase for launch in plan.kernels)
        return out

    ran: set[str] = set()
    monkeypatch.setattr(_shared, "attention", emulate)
    step = Step(
        seen=Seen(right=0),
        arguments=(("causal", True),),
        rows=(rows,) * 3,
        leftpad=(5, 0, 31),
        heads=(4, 2),
        **changes,
    )
    run = run_of(step)
    check(step, run, *call(run))
    assert ran == {phase}
