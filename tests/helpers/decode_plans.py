"""Calls that are decoded and how they are cut, for tests of what is planned: nothing is launched."""

from __future__ import annotations

from typing import Any

import torch
from skimattn import Params
from skimattn._call.problem import Problem
from skimattn._call.validate import validate
from skimattn._launch.decode import Cut, Cutter
from skimattn._select.dispatch import specs_of
from skimattn._select.kernels import unbuilt_row
from skimattn.codegen.metadata import Kernel

COUNTER = 0xC0FFEE0
SMS = 132
MIB = 1 << 20


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def problem_of(
    len_q: int = 1, len_k: int = 4096, heads: tuple[int, int] = (8, 2), batch: int = 3, dim: int = 128, **more: Any
) -> Problem:
    """A call whose tensors claim their sizes without having them."""
    one = torch.zeros(1, 1, 1, dim, dtype=torch.bfloat16)
    kv = one.expand(batch, len_k, heads[1], dim)
    return validate(Params(one.expand(batch, len_q, heads[0], dim), kv, kv, **more))


def rows_of(problem: Problem) -> dict[str, Kernel]:
    return {phase: unbuilt_row(spec) for phase, spec in specs_of(problem, "sm90").items()}


def cut(problem: Problem, sm_count: int = SMS) -> Cut:
    return Cutter(problem, rows_of(problem)["decode"], sm_count).cut(problem.batch, problem.len_q, problem.len_k)
