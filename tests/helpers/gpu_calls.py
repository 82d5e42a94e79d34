"""Calls whose tensors stay on a GPU, so that they can be launched again and looked at without a copy."""

from __future__ import annotations

import torch
from skimattn import Params

from .build import MAP_SENTINEL, Built, build, sentinel, stats_before
from .cases import Case, Content, contents
from .check import bits
from .run import params_of


def on_gpu(case: Case, device: str = "cuda") -> tuple[Built, list[Content], Params]:
    """A case's call, what its requests hold, and the call as a caller writes it."""
    held = contents(case)
    there = build(case, held).to(device)
    return there, held, params_of(there)


def reset(built: Built) -> None:
    """Outputs as they were before the call."""
    for name in ("out", "lse"):
        built.tensors[name].fill_(sentinel(built.tensors[name].dtype))
    if "stats" in built.tensors:
        built.tensors["stats"].copy_(stats_before(tuple(built.tensors["stats"].shape)))
        built.tensors["skip_map"].fill_(MAP_SENTINEL)


def snapshot(built: Built) -> dict[str, torch.Tensor]:
    """A copy of all outputs, as integers."""
    names = [name for name in ("out", "lse", "stats", "skip_map") if name in built.tensors]
    return {name: bits(built.tensors[name]).clone() for name in names}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two snapshots are equal."""
    return all(torch.equal(first[name], second[name]) for name in first)
