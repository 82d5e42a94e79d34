"""What is timed: a named call on given inputs. And the calls of this project."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import skimattn
import torch

from .inputs import Inputs
from .names import DENSE, skip_name, stat_name
from .shape import Shape


@dataclass(frozen=True)
class Contender:
    """A call that is timed.

    Args:
        name: in tables and result files.
        call: enqueues the work; returns the output as [B, S, Hq, D].
        poison: fills the output with NaN; None where the callee allocates it.
        params: the call object, where the call is ours.
    """

    name: str
    call: Callable[[], torch.Tensor]
    poison: Callable[[], object] | None = None
    params: skimattn.Params | None = None


def first(result: Any) -> torch.Tensor:
    """The output of a call that may return more beside it."""
    output: torch.Tensor = result[0] if isinstance(result, tuple | list) else result
    return output


def call_of(inputs: Inputs, shape: Shape, threshold: float | None = None, count: bool = False) -> skimattn.Params:
    """The call object: dense without ``threshold``, the stat kernel with ``count``. ``out`` is given and poisoned."""
    return skimattn.Params(
        inputs.q,
        inputs.k,
        inputs.v,
        mask=shape.mask,
        skip_softmax_threshold=threshold,
        stats=torch.zeros(2, dtype=torch.int64, device=inputs.q.device) if count else None,
        out=torch.full_like(inputs.q, float("nan"), dtype=torch.bfloat16 if shape.dtype == "e4m3" else inputs.q.dtype),
    )


def contender(name: str, params: skimattn.Params) -> Contender:
    """Launches of one call object, as a serving loop would repeat them."""
    out = params.out
    assert out is not None
    return Contender(name, lambda: first(skimattn.launch(params)), lambda: out.fill_(float("nan")), params)


def ours(inputs: Inputs, shape: Shape, thresholds: Sequence[float]) -> list[Contender]:
    """The dense kernel, the skip kernel at each threshold, and the stat kernel at the last one."""
    chosen = [contender(DENSE, call_of(inputs, shape))]
    chosen += [contender(skip_name(value), call_of(inputs, shape, value)) for value in thresholds]
    if thresholds:
        chosen.append(contender(stat_name(thresholds[-1]), call_of(inputs, shape, thresholds[-1], count=True)))
    return chosen


def kernel_of(params: skimattn.Params) -> dict[str, object]:
    """Which kernel runs, from ``explain``: name, tile (rows, keys), group rows, order, and if it was built before."""
    found = skimattn.explain(params)
    fields = ("kernel", "path", "tile", "group_rows", "order", "built")
    return {field: getattr(found, field) for field in fields}
