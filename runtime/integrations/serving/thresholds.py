"""Thresholds of all layers for all requests of a batch, each by its phase and length, in a few launches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ...sparse.policy import PHASES, Phase, PhaseRule


@dataclass(frozen=True)
class LayerRules:
    """What a layer is told.

    Args:
        rules: by phase; a phase that is not in it is dense.
        most_keys: that a row can see, of a window; None: all of its request.
    """

    rules: Mapping[Phase, PhaseRule]
    most_keys: int | None = None


class ThresholdTable:
    """Rules of several layers as numbers on the device: what :meth:`PhaseRule.threshold` says, of all at once.

    Args:
        layers: at least one.
        heads: query heads of each.
        device: where thresholds are wanted.
    """

    def __init__(self, layers: Sequence[LayerRules], heads: int, device: torch.device) -> None:
        """Copy the rules to the device."""
        rules = [[layer.rules.get(phase) for phase in PHASES] for layer in layers]
        by_head = any(rule is not None and isinstance(rule.factor, tuple) for row in rules for rule in row)
        self.columns = heads if by_head else 1
        factors = [[_factors(rule, self.columns) for rule in row] for row in rules]
        powers = [[0.0 if rule is None else rule.length_power for rule in row] for row in rules]
        most = [float("inf") if layer.most_keys is None else float(layer.most_keys) for layer in layers]
        self.by_length = any(power for row in powers for power in row)  # whether any threshold depends on lengths
        self._factors = torch.tensor(factors, dtype=torch.float32, device=device)
        self._powers = torch.tensor(powers, dtype=torch.float32, device=device)
        self._most = torch.tensor(most, dtype=torch.float32, device=device)[:, None]

    def empty(self, requests: int) -> torch.Tensor:
        """Room for so many requests: float32 ``[layers, requests]``, or ``[layers, requests, heads]``, zeros."""
        shape = (len(self._most), requests, self.columns)
        room = torch.zeros(shape, dtype=torch.float32, device=self._most.device)
        return room if self.columns > 1 else room[..., 0]

    def write(self, out: torch.Tensor, decodes: torch.Tensor, lengths: torch.Tensor) -> None:
        """Fill ``out``, made by :meth:`empty`, without waiting for the device.

        Args:
            out: of as many requests; its first ``[:, :B]`` are written.
            decodes: bool ``[B]``: which requests are in the phase decode.
            lengths: integers ``[B]``, the keys of each.
        """
        phase = decodes.long()
        keys = torch.minimum(lengths.to(torch.float32)[None], self._most).clamp(min=1.0)
        scale = keys ** self._powers.index_select(1, phase)
        factors = self._factors.index_select(1, phase)
        ratio = factors / scale[..., None] if out.dim() == 3 else factors[..., 0] / scale
        out[:, : len(phase)] = torch.where(ratio < 1, ratio, 0.0)


def _factors(rule: PhaseRule | None, columns: int) -> list[float]:
    if rule is None:
        return [0.0] * columns
    return list(rule.factor) if isinstance(rule.factor, tuple) else [rule.factor] * columns
