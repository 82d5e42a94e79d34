"""What ``bench serve`` measures: models, rows, the servers that answer them, and what must be reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PEER, DENSE = "vllm", "ours dense"
METRICS = ("ttft", "tpot")
NO_SLOWER = 0.99  # of the peer's speed, where nothing is skipped
OF_ALLOWED = 0.95  # of what the attention's share and its speedup allow
_MARGIN = 1.02  # of caches, for a block that none can have
_ROOM = 256  # tokens of a request in the cache beside its own: blocks that are not full
_OVERHEAD = 3.5  # GB of a server beside weights and cache: context, activations, graphs


@dataclass(frozen=True)
class Subject:
    """A model.

    Attributes:
        name: in results.
        weights: GB.
        token_bytes: of a token in the cache, all layers.
        thresholds: final ones by the share that they are to skip.
    """

    name: str
    weights: float
    token_bytes: int
    thresholds: Mapping[float, float | dict[str, float]]


# SmolLM2's are measured ones at 8k (0.9 is beyond what thresholds below 1 reach: it is what 0.95 skips). The planted
# model's skip these shares of the tiles that can be skipped at all: see bench/NOTES.md.
SUBJECTS = {
    "smollm2": Subject("smollm2", 0.3, 30 * 2 * 3 * 64 * 2, {0.5: 0.027, 0.9: 0.95}),
    "planted": Subject(
        "planted",
        1.1,
        8 * 2 * 4 * 128 * 2,
        {0.5: {"prefill": 0.0033, "decode": 0.0013}, 0.9: {"prefill": 0.2, "decode": 0.066}},
    ),
}


@dataclass(frozen=True)
class Row:
    """Requests to one model, so many at a time.

    Attributes:
        model: a key of :data:`SUBJECTS`, or ``replay``.
        length: tokens of the longest prompt.
        concurrency: requests at a time.
        requests: of a round.
        new_tokens: of each.
        rounds: that are kept, beside one of warm-up.
        short: whether it belongs to the short list.
    """

    model: str
    length: int
    concurrency: int
    requests: int
    new_tokens: int
    rounds: int
    short: bool = False

    @property
    def label(self) -> str:
        """Its name, which no other row has."""
        return f"{self.model} {size(self.length)} c{self.concurrency}"

    def cache_gb(self, token_bytes: int) -> float:
        """What holds all requests that run at once."""
        tokens = min(self.concurrency, self.requests) * (self.length + self.new_tokens + _ROOM)
        return tokens * token_bytes * _MARGIN / 1e9


def size(length: int) -> str:
    """``8k``, or the number."""
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)


ROWS = (
    Row("smollm2", 8064, 1, 8, 64, 5, short=True),
    Row("smollm2", 8064, 64, 64, 64, 3, short=True),
    Row("planted", 32768, 1, 4, 64, 5),
    Row("planted", 131072, 1, 1, 32, 5, short=True),
    Row("planted", 32768, 64, 64, 64, 2, short=True),
    Row("planted", 131072, 64, 64, 32, 2),
)


@dataclass(frozen=True)
class Contender:
    """A server: vLLM's own attention, or ours with a configuration.

    Attributes:
        name: in results.
        ours: whether its attention is ours.
        config: what layers skip; None: nothing.
    """

    name: str
    ours: bool
    config: Any = None


def contenders(thresholds: Mapping[float, Any], shares: Sequence[float]) -> list[Contender]:
    """The peer, and ours for each share; 0: dense. ``ValueError`` for a share that has no threshold."""
    made = [Contender(PEER, ours=False)]
    for share in shares:
        if share and share not in thresholds:
            known = ", ".join(f"{one:g}" for one in (0, *thresholds))
            raise ValueError(f"--shares: expected some of {known} (got {share:g})")
        config = {"threshold": thresholds[share]} if share else None
        made.append(Contender(f"ours {share:g}" if share else DENSE, True, config))
    return made


@dataclass(frozen=True)
class Group:
    """Servers that run at once, and the rows that they answer in turns.

    Attributes:
        cache_gb: of each.
        longest: tokens of a request.
        seats: requests that run at once.
    """

    rows: tuple[Row, ...]
    contenders: tuple[Contender, ...]
    cache_gb: float
    longest: int
    seats: int


def groups(
    rows: Sequence[Row], made: Sequence[Contender], weights: float, token_bytes: int, budget: float
) -> list[Group]:
    """Rows of one model, on servers that fit into ``budget`` GB together: all of them, else each ours beside the peer,
    else each alone. A cache that is larger than the memory is cut, so that requests wait for each other.
    """
    found: list[Group] = []
    for row in rows:
        most = budget - weights - _OVERHEAD
        if most <= 0:
            raise ValueError(f"--memory: expected more than {weights + _OVERHEAD:.1f} GB (got {budget:g})")
        cache = min(row.cache_gb(token_bytes), most)
        fitting = int(budget // (cache + weights + _OVERHEAD))
        for batch in _batches(made, fitting):
            found.append(Group((row,), batch, cache, row.length + row.new_tokens, row.concurrency))
    return _joined(found, weights, budget)


def _batches(made: Sequence[Contender], fitting: int) -> list[tuple[Contender, ...]]:
    if fitting >= len(made):
        return [tuple(made)]
    if fitting >= 2:
        return [(made[0], one) for one in made[1:]]
    return [(one,) for one in made]


def _joined(found: Sequence[Group], weights: float, budget: float) -> list[Group]:
    """Rows that the same servers can answer, one after the other: fewer are started."""
    made: list[Group] = []
    for group in found:
        last = made[-1] if made else None
        cache = max(last.cache_gb, group.cache_gb) if last else 0.0
        fits = len(group.contenders) * (cache + weights + _OVERHEAD) <= budget
        if last is not None and last.contenders == group.contenders and fits:
            longest, seats = max(last.longest, group.longest), max(last.seats, group.seats)
            made[-1] = Group((*last.rows, *group.rows), last.contenders, cache, longest, seats)
        else:
            made.append(group)
    return made


def allowed(share: float, speedup: float) -> float:
    """How much faster all of it is where a share of its time is so much faster."""
    return 1.0 / (1.0 - share + share / speedup)
