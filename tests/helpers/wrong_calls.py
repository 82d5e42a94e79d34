"""Calls that are right, ways to make them wrong, and what every refusal must do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from skimattn import ArgumentError, Params, launch

OUTPUTS = {"out": 7.0, "lse": 7.0, "stats": 7, "skip_map": 7}
Call = dict[str, Any]


def bf16(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


def e4m3(*shape: int) -> torch.Tensor:
    return torch.zeros(shape).to(torch.float8_e4m3fn)


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def batched() -> Call:
    """2 requests of 70 rows and 200 keys, 4 heads on 2, D = 64, through the stat kernel, all outputs given."""
    return {
        "q": bf16(2, 70, 4, 64),
        "k": bf16(2, 200, 2, 64),
        "v": bf16(2, 200, 2, 64),
        "skip_softmax_threshold": 0.5,
        "out": bf16(2, 70, 4, 64),
        "lse": torch.zeros(2, 70, 4),
        "stats": torch.zeros(2, 4, 2, dtype=torch.int64),
        "skip_map": torch.zeros(2, 4, 2, 2, dtype=torch.uint8),
    }


def ragged() -> Call:
    """Requests of 30 and 40 rows, 90 and 110 keys."""
    return batched() | {
        "q": bf16(70, 4, 64),
        "k": bf16(200, 2, 64),
        "v": bf16(200, 2, 64),
        "out": bf16(70, 4, 64),
        "lse": torch.zeros(70, 4),
        "cu_seqlens_q": ints(0, 30, 70),
        "cu_seqlens_k": ints(0, 90, 200),
    }


def paged() -> Call:
    """2 requests of 70 rows over 8 pages of 32 keys, at most 4 pages each."""
    return batched() | {
        "k": bf16(8, 32, 2, 64),
        "v": bf16(8, 32, 2, 64),
        "page_table": torch.arange(8, dtype=torch.int32).view(2, 4),
        "seqused_k": ints(100, 128),
        "mask": "causal",
    }


def eight_bit() -> Call:
    """As :func:`batched` in e4m3, with a descale of each form."""
    return batched() | {
        "q": e4m3(2, 70, 4, 64),
        "k": e4m3(2, 200, 2, 64),
        "v": e4m3(2, 200, 2, 64),
        "q_descale": torch.ones(()),
        "k_descale": torch.ones(1),
        "v_descale": torch.ones(2, 2),
    }


@dataclass(frozen=True)
class Wrong:
    """A base call, what is changed, the argument that the message names, and what it says was wanted and got."""

    name: str
    base: Callable[[], Call]
    change: Callable[[Call], Call]
    argument: str
    wanted: str
    got: str


def wrong(name: str, base: Callable[[], Call], argument: str, wanted: str, got: str, **change: Any) -> Wrong:
    """A case that sets arguments; a callable value is computed from the base call."""

    def apply(call: Call) -> Call:
        return {key: value(call) if callable(value) else value for key, value in change.items()}

    return Wrong(name, base, apply, argument, wanted, got)


def misaligned(*shape: int) -> torch.Tensor:
    """A bf16 tensor whose first element is 8 bytes past a multiple of 16."""
    storage = bf16(math.prod(shape) + 16)
    start = 4 + (-storage.data_ptr() % 16) // 2
    return storage[start : start + math.prod(shape)].view(*shape)


def columns_apart(*shape: int) -> torch.Tensor:
    """A bf16 tensor whose last dimension is not contiguous."""
    return bf16(*shape, 2)[..., 0]


def odd_rows(*shape: int) -> torch.Tensor:
    """A bf16 tensor whose rows are 2 bytes more than a multiple of 16 apart."""
    return bf16(*shape[:-1], shape[-1] + 1)[..., : shape[-1]]


def fill(call: Call) -> None:
    for name, value in OUTPUTS.items():
        tensor = call.get(name)
        # An output that is also an input is compared as it is; expanded ones cannot be filled in place.
        if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu" and 0 not in tensor.stride():
            tensor.fill_(value)


def snapshot(call: Call) -> dict[str, torch.Tensor]:
    given = {name: call.get(name) for name in OUTPUTS}
    return {name: t.clone() for name, t in given.items() if isinstance(t, torch.Tensor) and t.device.type == "cpu"}


def refuse(call: Call, argument: str, wanted: str, got: str) -> None:
    fill(call)
    before = snapshot(call)
    with pytest.raises(ArgumentError, match=rf"(?s)^{argument}\b.*expected .*{wanted}.*\(got .*{got}.*\)"):
        launch(Params(**call))
    for name, value in before.items():
        assert torch.equal(call[name], value), f"{name} was touched"


def refuse_case(case: Wrong) -> None:
    """The changed call is refused with the message that the case expects."""
    call = case.base()
    refuse(call | case.change(call), case.argument, case.wanted, case.got)
