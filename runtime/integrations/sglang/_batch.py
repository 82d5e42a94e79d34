"""Forwards as SGLang schedules them, as batches of one call: lengths, page tables, and the phase of each request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ...errors import expected
from ..serving.call import Batch
from ..serving.skipping import Arguments


@dataclass(frozen=True)
class Requests:
    """The requests of a forward.

    Args:
        slots: integers ``[B]`` on the device, the row of each in SGLang's table of tokens.
        lengths: integers ``[B]`` on the device, keys of each, new ones included.
        rows: new rows of each, on the host.
        longest: the most keys of a request, as the host knows it.
    """

    slots: torch.Tensor
    lengths: torch.Tensor
    rows: Sequence[int]
    longest: int


@dataclass(frozen=True)
class Pair:
    """A forward for layers that see everything, and for windowed layers with a pool of their own."""

    full: Batch
    window: Batch | None


def phases(requests: int, decoding: int) -> torch.Tensor:
    """Which requests decode: the last ones, which SGLang appends to prompts. Bool ``[requests]`` on the host."""
    if decoding > requests:
        raise expected("decoding requests", f"{requests} at most", decoding)
    decodes = torch.zeros(requests, dtype=torch.bool)
    decodes[requests - decoding :] = True
    return decodes


def starts_of(rows: Sequence[int]) -> torch.Tensor:
    """Where each request begins: int32 ``[B + 1]`` on the host."""
    starts = torch.zeros(len(rows) + 1, dtype=torch.int32)
    starts[1:] = torch.tensor(list(rows), dtype=torch.int32).cumsum(0)
    return starts


class Tables:
    """Page tables of SGLang's pool, where each page has consecutive tokens.

    Args:
        tokens: int ``[slots, most tokens]``, the place of every token in the pool.
        page: keys in a page.
        windows: what maps places to those in the pool of windowed layers; None: there is no such pool.
    """

    def __init__(
        self, tokens: torch.Tensor, page: int, windows: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> None:
        """Keep these."""
        self._tokens, self._page, self.windows = tokens, page, windows

    def width(self, longest: int) -> int:
        """Pages of so many keys, and no more than there can be."""
        return -(-min(longest, self._tokens.shape[1]) // self._page)

    def of(self, slots: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Int32 ``[B, width]`` for layers that see everything, and for windowed ones where they have a pool.

        Entries behind a request's last page say nothing, nor do those of pages that have left the window.
        """
        first = self._tokens[:, :: self._page][:, :width].index_select(0, slots.long())
        table = (first // self._page).to(torch.int32)
        if self.windows is None:
            return table, None
        return table, (self.windows(first.long()).clamp(min=0) // self._page).to(torch.int32)


def of_requests(requests: Requests, tables: Tables, skips: Arguments) -> Pair:
    """A forward that no graph holds."""
    starts = starts_of(requests.rows)
    table, window = tables.of(requests.slots, tables.width(requests.longest))
    full = Batch(
        tokens=int(starts[-1]),
        starts=starts.to(requests.slots.device, non_blocking=True),
        lengths=requests.lengths.to(torch.int32),
        table=table,
        longest_q=max(requests.rows),
        longest_k=requests.longest,
        skips=skips,
    )
    return Pair(full, None if window is None else replace(full, table=window))


class Static:
    """Memory of batches that decode, one row each, which CUDA graphs hold: replays find new contents in it.

    Args:
        requests: the most that come at once.
        tables: of the pool.
        longest: the most keys that a request can have.
        device: of the layers.
    """

    def __init__(self, requests: int, tables: Tables, longest: int, device: torch.device) -> None:
        """Allocate."""
        self._source, self._longest = tables, longest
        self._starts = torch.arange(requests + 1, dtype=torch.int32, device=device)
        self._lengths = torch.zeros(requests, dtype=torch.int32, device=device)
        self._table = torch.zeros(requests, tables.width(longest), dtype=torch.int32, device=device)
        self._window = None if tables.windows is None else torch.zeros_like(self._table)

    def fill(self, slots: torch.Tensor, lengths: torch.Tensor, real: int) -> torch.Tensor:
        """Set what a graph reads; nothing waits for the device.

        Args:
            slots: integers ``[B]``.
            lengths: integers ``[B]``, keys of each.
            real: how many are requests; those behind pad the graph and see nothing.

        Returns:
            Int32 ``[B]``: the lengths that graphs read.
        """
        batch = len(slots)
        here = self._lengths[:batch]
        here.copy_(lengths)
        here[real:] = 0
        table, window = self._source.of(slots, self._table.shape[1])
        self._table[:batch].copy_(table)
        if self._window is not None and window is not None:
            self._window[:batch].copy_(window)
        return here

    def pair(self, batch: int, skips: Arguments) -> Pair:
        """A forward of so many requests, whose tensors are this memory."""
        full = Batch(
            tokens=batch,
            starts=self._starts[: batch + 1],
            lengths=self._lengths[:batch],
            table=self._table[:batch],
            longest_q=1,
            longest_k=self._longest,
            skips=skips,
        )
        return Pair(full, None if self._window is None else replace(full, table=self._window[:batch]))
