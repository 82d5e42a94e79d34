"""The rows of ``bench decode``: what is measured, and what must be reached."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from .goal import Goal
from .names import BEST, DENSE, PAGES_OF_64, READ, SKIP_NOTHING, THRESHOLD, skip_name, stat_name
from .planted_row import PlantedRow

FLASH_ATTENTION_3 = "fa3"  # whichever of its variants is the fastest
_ZERO, _NOTHING = SKIP_NOTHING
_LATENT, _LATENT_V = 576, 512
_MLA: dict[str, Any] = {"heads_q": 128, "heads_kv": 1, "head_dim": _LATENT, "layout": "latent"}


@dataclass(frozen=True)
class Work(PlantedRow):
    """One decode step: ``rows[b]`` queries of request b see its ``lens[b]`` keys (causal, or a window of them).

    Args:
        label: in tables.
        lens: keys of each request.
        rows: queries of each request.
        heads_q, heads_kv, head_dim: of the call.
        window: keys that a row sees, its own included; 0: all.
        page: keys per page.
        layout: ``split``: k and v are pools of their own, [pages, page, Hkv, D]; ``joined``: two slices of one
            [pages, Hkv, page, 2D], as newer versions of vLLM have it; ``latent``: v is the first columns of k (MLA).
        cache: ``bf16`` or ``e4m3``; q is bf16 in any case.
        planted: share of the blocks that is to be skipped; None: N(0,1).
        block: keys that are planted together.
        skipping: whether our skip and stat kernels are measured too.
        pages_of_64: whether our dense kernel is also measured on pages of 64, to compare with.
        goals: what must be reached.
        group: of rows, for choosing them.
    """

    label: str
    lens: tuple[int, ...]
    rows: tuple[int, ...]
    heads_q: int = 64
    heads_kv: int = 4
    head_dim: int = 128
    window: int = 0
    page: int = 64
    layout: str = "split"
    cache: str = "bf16"
    planted: float | None = None
    block: int = 64
    skipping: bool = False
    pages_of_64: bool = False
    goals: tuple[Goal, ...] = ()
    group: str = "dense"

    @property
    def ragged(self) -> bool:
        """Whether requests differ in their number of queries."""
        return len({*self.rows}) > 1

    @property
    def head_dim_v(self) -> int:
        """Columns of the values and of the output."""
        return _LATENT_V if self.layout == "latent" else self.head_dim

    @property
    def item_bytes(self) -> int:
        """Bytes of one element of the cache."""
        return 1 if self.cache == "e4m3" else 2

    @property
    def bytes(self) -> int:
        """Bytes of keys and values that rows see, each once. Queries, output and partial results do not count."""
        columns = self.head_dim if self.layout == "latent" else 2 * self.head_dim
        pairs = zip(self.lens, self.rows, strict=True)
        keys = sum(min(length, self.window + rows - 1) if self.window else length for length, rows in pairs)
        return keys * self.heads_kv * columns * self.item_bytes


def _work(label: str, batch: int, length: int, *goals: Goal, rows: int = 1, **fields: object) -> Work:
    made = Work(label, (length,) * batch, (rows,) * batch, goals=goals)
    return replace(made, **fields)  # type: ignore[arg-type]


def _over_fa3(bar: float = 1.0) -> Goal:
    return Goal(DENSE, FLASH_ATTENTION_3, bar)


_NOT_WORSE = Goal(DENSE, BEST, 0.95)
_OF_READ = Goal(DENSE, READ, 0.92)
_NOTHING_SKIPPED = (
    Goal(skip_name(_ZERO), DENSE, 0.98),
    Goal(skip_name(_NOTHING), DENSE, 0.98),
    Goal(stat_name(_NOTHING), skip_name(_NOTHING), 0.98),
)
_8, _16, _32, _64 = (k * 1024 for k in (8, 16, 32, 64))
_B64, _B1, _B4 = "b64 64k", "b1 128k", "b4 64k q8/kv1"


def _dense() -> Iterator[Work]:
    yield _work("b64 16k", 64, _16, _over_fa3(), _OF_READ, *_NOTHING_SKIPPED, skipping=True)
    yield _work(_B64, 64, _64, _over_fa3(), _OF_READ, *_NOTHING_SKIPPED, skipping=True)
    yield _work("b16 8k q32/kv8", 16, _8, _over_fa3(), *_NOTHING_SKIPPED, heads_q=32, heads_kv=8, skipping=True)
    yield _work("b128 2k q32/kv8", 128, 2048, _over_fa3(), heads_q=32, heads_kv=8)
    yield _work("b1 4k q32/kv8", 1, 4096, _over_fa3(), heads_q=32, heads_kv=8)
    yield _work("b8 4k q32/kv8", 8, 4096, _over_fa3(), heads_q=32, heads_kv=8)
    yield _work("d64 b32 8k q32/kv8", 32, _8, _over_fa3(), heads_q=32, heads_kv=8, head_dim=64)
    yield _work("d256 b16 8k q16/kv8", 16, _8, _over_fa3(), heads_q=16, heads_kv=8, head_dim=256)
    yield _work("window 4096 b16 32k", 16, _32, _over_fa3(), window=4096)
    yield _work("2D cache b16 8k", 16, _8, _over_fa3(), layout="joined")
    yield _work(_B1, 1, 2 * _64, _over_fa3(1.05), *_NOTHING_SKIPPED, skipping=True)
    yield _work("b1 32k q32/kv8", 1, _32, _over_fa3(1.05), heads_q=32, heads_kv=8)
    yield _work(_B4, 4, _64, _over_fa3(1.05), *_NOTHING_SKIPPED, heads_q=8, heads_kv=1, skipping=True)
    yield _work("4 rows b16 16k", 16, _16, _over_fa3(), rows=4)
    yield _work("16 rows b1 64k q8/kv1", 1, _64, _over_fa3(), rows=16, heads_q=8, heads_kv=1)
    mixed = Work("60 decodes at 8k and a 2k chunk over 8k", (_8,) * 61, (1,) * 60 + (2048,))
    yield replace(mixed, goals=(_over_fa3(),))


def _pages() -> Iterator[Work]:
    goal = Goal(DENSE, PAGES_OF_64, 0.95)
    yield _work("pages of 16 b64 16k", 64, _16, goal, page=16, pages_of_64=True)
    yield _work("pages of 16 b16 8k q32/kv8", 16, _8, goal, page=16, pages_of_64=True, heads_q=32, heads_kv=8)


def _planted() -> Iterator[Work]:
    bars = {(_B64, 0.5): 1.27, (_B64, 0.8): 1.55, (_B64, 0.93): 1.75, (_B1, 0.8): 1.4, (_B4, 0.8): 1.4}
    shapes = ((_B64, 64, _64, 64, 4), (_B1, 1, 2 * _64, 64, 4), (_B4, 4, _64, 8, 1))
    skip, stat = skip_name(THRESHOLD), stat_name(THRESHOLD)
    for label, batch, length, heads_q, heads_kv in shapes:
        for share in (0.0, 0.5, 0.8, 0.93):
            bar = 0.98 if share == 0 else bars.get((label, share))
            goals = [Goal(skip, DENSE, bar)] if bar else []
            goals.append(Goal(stat, skip, 0.98))
            made = _work(f"{label}, planted {share:.0%}", batch, length, *goals, skipping=True, planted=share)
            yield replace(made, heads_q=heads_q, heads_kv=heads_kv)


def _eight_bit() -> Iterator[Work]:
    bandwidth = Goal(DENSE, READ, 0.93)
    for label, length in (("b64 16k", _16), (_B64, _64)):
        goals = (Goal(DENSE, "xqa", 1.03, instead=bandwidth), _over_fa3(1.3))
        yield _work(f"e4m3 cache {label}", 64, length, *goals, cache="e4m3")


def _latent() -> Iterator[Work]:
    for rows, bar in ((1, 1.1), (2, 1.6)):
        label = f"MLA b32 8k, {rows} token{'s' * (rows > 1)}"
        yield _work(label, 32, _8, Goal(DENSE, "flashmla", 1.0), rows=rows, **_MLA)
        goal = Goal(skip_name(THRESHOLD), DENSE, bar)
        yield _work(f"{label}, planted 90%", 32, _8, goal, rows=rows, planted=0.9, skipping=True, **_MLA)


def _others() -> Iterator[Work]:
    for label, batch, length in (("b1 32k", 1, 2 * _16), ("b4 16k", 4, _16), ("b64 8k", 64, _8)):
        yield _work(f"MLA {label}", batch, length, _NOT_WORSE, **_MLA)
    yield _work("MLA b32 8k q16", 32, _8, _NOT_WORSE, **{**_MLA, "heads_q": 16})
    yield _work("b2 16k q32/kv8", 2, _16, _NOT_WORSE, heads_q=32, heads_kv=8)
    yield _work("b256 1k", 256, 1024, _NOT_WORSE)
    lens = tuple(int(1024 * 2 ** (5 * index / 31)) for index in range(32))
    mixed = tuple(lens[index * 13 % 32] for index in range(32))  # in no order
    yield Work("b32 1k to 32k q32/kv8", mixed, (1,) * 32, heads_q=32, heads_kv=8, goals=(_NOT_WORSE,))
    yield _work("MHA q32/kv32 b8 4k", 8, 4096, _NOT_WORSE, heads_q=32, heads_kv=32)
    yield _work("b1 16k", 1, _16, _NOT_WORSE)
    yield _work("b17 16k", 17, _16, _NOT_WORSE)


def _all() -> Iterator[Work]:
    groups = {"dense": _dense, "pages": _pages, "planted": _planted, "e4m3": _eight_bit, "mla": _latent}
    for group, rows in {**groups, "others": _others}.items():
        yield from (replace(work, group=group) for work in rows())


WORKS = (*_all(),)
