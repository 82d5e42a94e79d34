"""Where tensors of a known kind of call may lie: quick arithmetic agrees with the checks that explain themselves."""

from __future__ import annotations

import random

import pytest
import torch
from skimattn import ArgumentError, Params
from skimattn._call.validate import check_addresses, validate
from skimattn._cuda.device import device
from skimattn._launch.buffers import make_buffers
from skimattn._launch.loader import Loaded
from skimattn._launch.planner import Planner
from skimattn._launch.prepared import Prepared
from skimattn._select import kernels
from skimattn._select.dispatch import specs_of

from tests.helpers.fake_driver import install, on_gpu, scan_of

BYTES = 1 << 17


def placed(start: int, shape: tuple[int, ...], dtype: torch.dtype, memory: torch.Tensor) -> torch.Tensor:
    """A tensor that starts at byte ``start`` of ``memory``."""
    size = torch.Size(shape).numel() * dtype.itemsize
    return on_gpu(memory[start : start + size].view(dtype).view(shape))


def call_at(starts: dict[str, int], memory: torch.Tensor) -> Params:
    """A stat call with every kind of output, whose tensors start at these bytes."""
    bf16 = torch.bfloat16
    shapes = {
        "q": ((1, 70, 2, 64), bf16),
        "k": ((1, 90, 2, 64), bf16),
        "v": ((1, 90, 2, 64), bf16),
        "sinks": ((2,), torch.float32),
        "out": ((1, 70, 2, 64), bf16),
        "lse": ((1, 70, 2), torch.float32),
        "stats": ((2,), torch.int64),
        "skip_map": ((1, 2, 2, 1), torch.uint8),
    }
    tensors = {name: placed(starts[name], *shape, memory) for name, shape in shapes.items()}
    return Params(**tensors, skip_softmax_threshold=0.5)


def apart() -> dict[str, int]:
    """Starts at which nothing overlaps: q, k, v and out take 17920, 23040, 23040 and 17920 bytes."""
    return {
        "q": 0,
        "k": 17920,
        "v": 40960,
        "out": 64000,
        "lse": 81920,
        "sinks": 82480,
        "stats": 82488,
        "skip_map": 82504,
    }


def test_quick_checks_agree_with_those_that_explain(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    memory = torch.zeros(BYTES + 16, dtype=torch.uint8)
    memory = memory[-memory.data_ptr() % 16 :]
    params = call_at(apart(), memory)
    problem = validate(params)
    (spec,) = specs_of(problem, "sm90").values()
    prepared, loaded = Prepared(), {spec.phase: Loaded(kernels.unbuilt_row(spec), 1)}
    scan = scan_of(params)
    buffers, planner = make_buffers(params, problem.out_shape), Planner({spec.phase: loaded[spec.phase].kernel}, 132)
    prepared.fill(scan.outline.names, problem, buffers, planner, device(0), loaded)
    assert prepared.accepts(scan.addresses)
    choose = random.Random(0)
    verdicts = []
    for _ in range(400):
        starts = apart()
        name = choose.choice(list(starts))
        unit = {"stats": 8, "skip_map": 1, "lse": 4, "sinks": 4}.get(name, 2)
        edge = choose.choice([*apart().values(), 82508, 100000]) + choose.choice([-512, -16, -4, 0, 4, 16, 560])
        starts[name] = min(max(0, edge // unit * unit), BYTES - 23040)
        moved = call_at(starts, memory)
        try:
            check_addresses(moved)
            wanted = True
        except ArgumentError:
            wanted = False
        assert prepared.accepts(scan_of(moved).addresses) is wanted, (name, starts)
        verdicts.append(wanted)
    assert 50 < sum(verdicts) < 350
