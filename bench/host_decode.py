"""Decode steps of ``python -m bench host``: one row a request over a paged cache, in known and in ever new sizes."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import skimattn
import torch

from .contender import first
from .host_shapes import COUNT, in_turn
from .names import REPEATED_DECODE
from .peers import MissingError
from .timing import Call

_HEADS_Q, _HEADS_KV, _HEAD_DIM, _PAGE = 4, 1, 128, 16
_BATCH, _WIDTH = 8, 64  # requests, and pages of each, where they do not change
_USED = 16  # keys, so few that no GPU is what is waited for; only the device knows them
_Step = Callable[[int, int], object]  # of so many requests and pages of each


def decode_rows(device: str, count: int = COUNT) -> dict[str, Call]:
    """Rows by name: ours, and FlashAttention-3's where it is there."""
    cache = _Cache(device, count)
    known = cache.ours(_BATCH, _WIDTH)
    rows: dict[str, Call] = {REPEATED_DECODE: partial(skimattn.launch, known)}
    rows |= _named(
        "decode {}, launch(Params(...))", lambda batch, width: skimattn.launch(cache.ours(batch, width)), count
    )
    try:
        return rows | _named("fa3, decode {}", cache.fa3(), count)
    except MissingError:
        return rows


def _named(name: str, step: _Step, count: int) -> dict[str, Call]:
    """A row for each thing that may be new."""
    return {
        name.format("in known sizes"): partial(step, _BATCH, _WIDTH),
        name.format("of a new batch size"): in_turn([partial(step, 1 + index, _WIDTH) for index in range(count)]),
        name.format("of new lengths"): in_turn([partial(step, _BATCH, _WIDTH + index) for index in range(count)]),
    }


class _Cache:
    """Pages that all requests read, and tables and lengths as large as any step's."""

    def __init__(self, device: str, count: int) -> None:
        pages = torch.randn(2, 2 * _WIDTH, _PAGE, _HEADS_KV, _HEAD_DIM, device=device).bfloat16()
        self._k, self._v = pages
        most = max(count, _BATCH)
        self._q = torch.randn(most, 1, _HEADS_Q, _HEAD_DIM, device=device).bfloat16()
        self._used = torch.full((most,), _USED, dtype=torch.int32, device=device)
        self._offsets = torch.arange(most + 1, dtype=torch.int32, device=device)
        # Each width is a table of its own, contiguous as an engine's are.
        widths = range(_WIDTH, _WIDTH + count)
        self._tables = {width: torch.zeros(_BATCH, width, dtype=torch.int32, device=device) for width in widths}
        self._tables[_WIDTH] = torch.zeros(most, _WIDTH, dtype=torch.int32, device=device)

    def ours(self, batch: int, width: int) -> skimattn.Params:
        """A step as an engine would write it, in new tensors over the same memory."""
        return skimattn.Params(
            self._q[:batch],
            self._k,
            self._v,
            page_table=self._tables[width][:batch],
            seqused_k=self._used[:batch],
            max_seqlen_k=width * _PAGE,
            mask="causal",
        )

    def fa3(self) -> _Step:
        """The same step by FlashAttention-3, which chooses splits itself."""
        path = os.environ.get("FA3_LIBRARY")
        if not path:
            raise MissingError("the environment variable FA3_LIBRARY does not name its library")
        operators: Any = torch.ops
        operators.load_library(path)

        def step(batch: int, width: int) -> torch.Tensor:
            # fmt: off
            return first(operators._vllm_fa3_C.fwd(
                self._q[:batch, 0], self._k, self._v, None, None, None, None, self._offsets[: batch + 1], None, None,
                None, self._used[:batch], 1, width * _PAGE, self._tables[width][:batch], None, None, None, None, None,
                None, None, None, _HEAD_DIM**-0.5, True, -1, -1, 0.0, True, None, 0, None, 0, None, 1, 0, None,
            ))
            # fmt: on

        return step
