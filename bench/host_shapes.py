"""Calls of ``python -m bench host`` that are never the same twice, as a serving engine's are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle

import skimattn
import torch

from .peers import MissingError, Varlen, fa3_varlen
from .timing import Call

COUNT = 600  # more shapes than the runtime keeps prepared (256), so that every one is new when its turn comes again
_HEADS_Q, _HEADS_KV, _HEAD_DIM = 4, 1, 128
_LEAST, _ROWS = 65, 80  # the shortest length, and the rows of a request in batches of changing size: not decode's


def in_turn(calls: Sequence[Call]) -> Call:
    """One call that makes the next of ``calls`` whenever it is made, and begins again after the last."""
    turns: Iterator[Call] = cycle(calls)
    return lambda: next(turns)()


def new_shapes(device: str, count: int = COUNT) -> dict[str, Call]:
    """Rows by name: ours, and FlashAttention-3's where it is there."""
    pool = _Pool(device, count)
    rows = {
        "new length, launch(Params(...))": in_turn([partial(_batched, *pool.one(n)) for n in pool.lengths]),
        "new ragged total, launch(Params(...))": in_turn([partial(_ragged, *pool.two(n)) for n in pool.lengths]),
        "new batch size, launch(Params(...))": in_turn([partial(_batched, *pool.many(b)) for b in pool.batches]),
        "new threshold, launch(Params(...))": in_turn(
            [partial(_batched, *pool.one(_LEAST), threshold=1 / n) for n in pool.lengths]
        ),
    }
    try:
        varlen = fa3_varlen()
    except MissingError:
        return rows
    peers = {
        "fa3, new length": [_peer(varlen, *pool.ragged(n, 1)) for n in pool.lengths],
        "fa3, new ragged total": [_peer(varlen, *pool.ragged(n, 2)) for n in pool.lengths],
        "fa3, new batch size": [_peer(varlen, *pool.ragged(b * _ROWS, b)) for b in pool.batches],
    }
    return rows | {name: in_turn(calls) for name, calls in peers.items()}


class _Pool:
    """Tensors of many shapes over the same memory."""

    def __init__(self, device: str, count: int) -> None:
        self.lengths = range(_LEAST, _LEAST + count)
        self.batches = range(1, 1 + count)
        most = max(self.lengths[-1], self.batches[-1] * _ROWS)
        heads = _HEADS_Q + 2 * _HEADS_KV
        both = torch.randn(most, heads, _HEAD_DIM, device=device).bfloat16()
        self._q, rest = both[:, :_HEADS_Q], both[:, _HEADS_Q:]
        self._k, self._v = rest[:, :_HEADS_KV], rest[:, _HEADS_KV:]

    def one(self, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A request of so many rows."""
        return self._q[None, :rows], self._k[None, :rows], self._v[None, :rows]

    def many(self, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """So many requests of a few rows."""
        rows = [tensor[: batch * _ROWS] for tensor in (self._q, self._k, self._v)]
        q, k, v = (tensor.view(batch, _ROWS, *tensor.shape[1:]) for tensor in rows)
        return q, k, v

    def ragged(self, total: int, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int]:
        """Rows end to end in so many requests: q, k, v, offsets, the most rows of one."""
        ends = [total * (index + 1) // batch for index in range(batch)]
        offsets = torch.tensor([0, *ends], dtype=torch.int32, device=self._q.device)
        return self._q[:total], self._k[:total], self._v[:total], offsets, -(-total // batch)

    def two(self, total: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int]:
        """Two requests end to end."""
        return self.ragged(total, 2)


def _batched(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, threshold: float | None = None) -> object:
    return skimattn.launch(skimattn.Params(q, k, v, mask="causal", skip_softmax_threshold=threshold))


def _ragged(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor, longest: int) -> object:
    return skimattn.launch(
        skimattn.Params(
            q,
            k,
            v,
            cu_seqlens_q=offsets,
            cu_seqlens_k=offsets,
            max_seqlen_q=longest,
            max_seqlen_k=longest,
            mask="causal",
        )
    )


def _peer(
    varlen: Varlen, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor, longest: int
) -> Callable[[], object]:
    return lambda: varlen(q, k, v, offsets, offsets, longest, longest, True)
