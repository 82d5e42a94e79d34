"""Ranks of ``torch.distributed``: which this is, its file, sums over all."""

from __future__ import annotations

from pathlib import Path

import torch


def rank_and_world() -> tuple[int, int]:
    """This rank and how many there are; 0 and 1 where ``torch.distributed`` is not in use."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def rank_path(path: Path, rank: int) -> Path:
    """The file of a rank: that of rank 0 has the name itself."""
    return path if rank == 0 else path.with_name(f"{path.stem}.rank{rank}{path.suffix}")


def summed_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The sum of int64 values over all ranks, on the CPU. Every rank has to ask."""
    on_gpu = torch.distributed.get_backend() == "nccl"
    moved = values.to("cuda" if on_gpu else "cpu", copy=True)
    torch.distributed.all_reduce(moved)
    return moved.cpu()
