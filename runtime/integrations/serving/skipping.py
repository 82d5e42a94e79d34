"""What the layers of one kind skip in a batch: thresholds in static memory, and counts that kernels add to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ...sparse.policy import PHASES, Phase
from .thresholds import LayerRules, ThresholdTable

Arguments = Mapping[str, Mapping[str, torch.Tensor]]


class Skipping:
    """Thresholds and counts of layers that are computed with one batch description.

    Memory stays where it is as long as batches are no larger than ``requests``, so CUDA graphs can hold it.

    Args:
        layers: rules by name, at least one.
        heads: query heads of each.
        requests: the most that come at once; more make new memory.
        device: of the layers.
        count: whether kernels are to count.
    """

    def __init__(
        self, layers: Mapping[str, LayerRules], heads: int, requests: int, device: torch.device, *, count: bool
    ) -> None:
        """Allocate."""
        self.names = tuple(layers)
        self._phases = {name: frozenset(one.rules) for name, one in layers.items()}
        self._table = ThresholdTable(list(layers.values()), heads, device)
        self._device, self._count = device, count
        self._allocate(requests)

    def reserve(self, requests: int) -> None:
        """Make room for so many requests, before graphs hold the memory; what has been counted must be collected."""
        if requests > len(self._decodes):
            self._allocate(requests)

    def _allocate(self, requests: int) -> None:
        self._decodes = torch.zeros(requests, dtype=torch.bool, device=self._device)
        self._last: torch.Tensor | None = None  # what is in it, of the batch before, on the host
        self._thresholds = self._table.empty(requests)
        shape = (len(self.names), requests, 2)
        self._counts = torch.zeros(shape, dtype=torch.int64, device=self._device) if self._count else None
        self._views: dict[int, dict[str, dict[str, torch.Tensor]]] = {}

    def same_phases(self, decodes: torch.Tensor) -> bool:
        """Whether the batch before had as many requests, in the same phases: bool ``[B]`` on the host."""
        return self._last is not None and torch.equal(self._last, decodes)

    def prepare(self, decodes: torch.Tensor, lengths: torch.Tensor, *, whole: bool) -> Arguments:
        """Set the thresholds of a batch; nothing waits for the device. What was counted before must be collected, or
        belong to the same phases. Where they are the same and no threshold depends on lengths, nothing is launched.

        Args:
            decodes: bool ``[B]`` on the host, which requests are in the phase decode.
            lengths: int32 ``[B]`` on the device, the keys of each.
            whole: also for layers that no request of this batch skips in, as graphs need it that others will replay.

        Returns:
            Arguments of :class:`skimattn.Params` by layer.
        """
        batch = len(decodes)
        self.reserve(batch)
        here, same = self._decodes[:batch], self.same_phases(decodes)
        if not same:
            here.copy_(decodes, non_blocking=True)
            self._last = decodes.clone()
        if not same or self._table.by_length:
            self._table.write(self._thresholds, here, lengths)
        found = self._views.get(batch)
        if found is None:
            found = self._views[batch] = {name: self._view(index, batch) for index, name in enumerate(self.names)}
        if whole:
            return found
        phases = phases_in(decodes)
        return {name: arguments for name, arguments in found.items() if not self._phases[name].isdisjoint(phases)}

    def _view(self, index: int, batch: int) -> dict[str, torch.Tensor]:
        arguments = {"skip_softmax_threshold": self._thresholds[index, :batch]}
        return arguments if self._counts is None else {**arguments, "stats": self._counts[index, :batch]}

    def collect(self) -> torch.Tensor:
        """(visited, skipped) since the last time, int64 ``[layers, phases, 2]`` on the device."""
        assert self._counts is not None, "asked of those that count"
        counts = self._counts.clone()
        self._counts -= counts
        decode = (counts * self._decodes[None, :, None]).sum(1)
        return torch.stack((counts.sum(1) - decode, decode), dim=1)

    def forget(self) -> None:
        """Drop what was counted since the last time."""
        if self._counts is not None:
            self._counts.zero_()


def phases_in(decodes: torch.Tensor) -> Sequence[Phase]:
    """The phases that requests of a batch are in, from bool ``[B]`` on the host."""
    several = (not bool(decodes.all()), bool(decodes.any()))
    return [phase for phase, there in zip(PHASES, several, strict=True) if there]


def which_decode(prefilling: torch.Tensor | None, starts: torch.Tensor, decode_rows: int) -> torch.Tensor:
    """Which requests are in the phase decode: bool ``[B]`` on the host.

    Args:
        prefilling: bool, which requests are still in their prompt, as the engine says; those that are missing at the
            end pad a graph. None: the engine does not say.
        starts: integers ``[B + 1]`` on the host, where each request begins.
        decode_rows: the most rows of a request that generates, for where the engine does not say.
    """
    batch = len(starts) - 1
    if prefilling is None:
        return starts[1:] - starts[:-1] <= decode_rows
    decodes = torch.ones(batch, dtype=torch.bool)
    said = min(batch, len(prefilling))
    decodes[:said] = ~prefilling[:said].bool()
    return decodes


def numbers_by_phase(decodes: torch.Tensor, starts: torch.Tensor) -> tuple[dict[Phase, int], dict[Phase, int]]:
    """Requests and tokens of each phase, from what the host knows; requests without rows pad a graph."""
    rows = starts[1:] - starts[:-1]
    requests: dict[Phase, int] = {}
    tokens: dict[Phase, int] = {}
    for phase, chosen in zip(PHASES, (~decodes, decodes), strict=True):
        used = chosen & (rows > 0)
        if bool(used.any()):
            requests[phase], tokens[phase] = int(used.sum()), int(rows[used].sum())
    return requests, tokens
