"""Counters that kernels add to, and copies of them that arrive later."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ..policy import PHASES, Phase


class Counters:
    """(visited, skipped) tiles by layer and phase: int64 ``[layers, phases, 2]`` on each device that asks.

    They are only ever added to, by kernels, and never reset: steps are differences of copies. So they hold under CUDA
    graphs, whose replays add to the same memory.

    Args:
        layers: how many.
    """

    def __init__(self, layers: int) -> None:
        """Nothing is allocated yet."""
        self.layers = layers
        self.by_device: dict[torch.device, torch.Tensor] = {}
        self._views: dict[tuple[torch.device, int, Phase], torch.Tensor] = {}

    def allocate(self, device: torch.device) -> None:
        """Make the counters of a device, with zeros. Not while a CUDA graph is captured."""
        if device not in self.by_device:
            shape = (self.layers, len(PHASES), 2)
            counters = self.by_device[device] = torch.zeros(shape, dtype=torch.int64, device=device)
            for layer in range(self.layers):
                for index, phase in enumerate(PHASES):
                    self._views[device, layer, phase] = counters[layer, index]

    def of(self, layer: int, phase: Phase, device: torch.device) -> torch.Tensor:
        """What calls of a layer in a phase add to: int64 ``[2]``."""
        view = self._views.get((device, layer, phase))
        if view is None:
            self.allocate(device)
            view = self._views[device, layer, phase]
        return view


@dataclass
class LayerCollector:
    """The collector of one layer: see :class:`skimattn.sparse.policy.Collector`."""

    counters: Counters
    layer: int

    def counts(self, phase: Phase, batch: int, heads_q: int, device: torch.device) -> torch.Tensor:
        """The layer's own counters, whatever the batch."""
        del batch, heads_q
        return self.counters.of(self.layer, phase, device)


@dataclass
class Slot:
    """Room for one copy of all counters, on the host: pinned where they are on a GPU, so that copying waits for nobody.

    ``arrived`` are events after which the copies are there.
    """

    copies: dict[torch.device, torch.Tensor] = field(default_factory=dict)
    arrived: dict[torch.device, Any] = field(default_factory=dict)

    def take(self, counters: Counters) -> None:
        """Start copying, behind what was launched on the current streams; returns at once."""
        for device, values in counters.by_device.items():
            copy = self.copies.get(device)
            if copy is None:
                pinned = device.type == "cuda"
                copy = self.copies[device] = torch.zeros(values.shape, dtype=torch.int64, pin_memory=pinned)
                if pinned:
                    # Blocking: the thread that waits sleeps, and does not take a core from the host's work.
                    event: Any = torch.cuda.Event
                    self.arrived[device] = event(blocking=True)
            copy.copy_(values, non_blocking=True)
            if device in self.arrived:
                self.arrived[device].record(torch.cuda.current_stream(device))

    def wait(self) -> torch.Tensor:
        """The counts of all devices together, int64 ``[layers, phases, 2]``, once they are there."""
        for event in self.arrived.values():
            event.synchronize()
        return torch.stack(list(self.copies.values())).sum(0)
