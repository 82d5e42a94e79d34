"""Collectors of tile counts that stay on the device until somebody asks."""

from __future__ import annotations

import torch

from .policy import Phase


class TileCounts:
    """(visited, skipped) tiles of one layer since it was made or reset, by phase.

    Args:
        by_head: of each query head on its own; calls of every batch size then have a buffer of their own.
    """

    def __init__(self, by_head: bool = False) -> None:
        """Nothing is counted yet, and nothing allocated."""
        self.by_head = by_head
        self._buffers: dict[tuple[Phase, tuple[int, ...], torch.device], torch.Tensor] = {}

    def counts(self, phase: Phase, batch: int, heads_q: int, device: torch.device) -> torch.Tensor | None:
        """What a call adds to: int64 ``[2]``, or ``[B, Hq, 2]``; always the same for calls of one size.

        Under a CUDA graph it must have been asked for once before the capture, since it allocates then.
        """
        shape = (batch, heads_q, 2) if self.by_head else (2,)
        key = (phase, shape, device)
        found = self._buffers.get(key)
        if found is None:
            found = self._buffers[key] = torch.zeros(shape, dtype=torch.int64, device=device)
        return found

    def total(self, phase: Phase) -> torch.Tensor:
        """The counts of a phase on the CPU, int64 ``[2]``, or ``[Hq, 2]`` by head; waits for the device."""
        held = [buffer.cpu() for (of, _, _), buffer in self._buffers.items() if of == phase]
        if not held:
            return torch.zeros(2, dtype=torch.int64)
        summed = [buffer.sum(0) if self.by_head else buffer for buffer in held]
        return torch.stack(summed).sum(0)

    def reset(self) -> None:
        """Set all counts to zero, on the device."""
        for buffer in self._buffers.values():
            buffer.zero_()
