"""The rows of ``bench rows``: what is measured of prefill, and what must be reached."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from .goal import Goal
from .names import BEST, DENSE, SKIP_NOTHING, THRESHOLD, TWICE, skip_name
from .planted_row import PlantedRow
from .shape import Shape, drawn_lengths

_DENSE_PEERS = ("fa3", "fa4", "cudnn")
_EIGHT_BIT_PEERS = ("fa3", "fmha_v2")
_SHARES = (0.5, 0.75, 0.9)


@dataclass(frozen=True)
class Work(PlantedRow):
    """One call: ``rows[b]`` queries of request b over its ``lens[b]`` keys.

    Args:
        label: in tables.
        lens: keys of each request.
        rows: queries of each request, the last ones if they are fewer than keys.
        mask: ``causal`` (bottom-right) or ``full``.
        heads_q, heads_kv: of the call.
        head_dim: of queries and keys.
        head_dim_v: of values and output.
        dtype: of q, k and v: ``bf16``, ``fp16`` or ``e4m3``, whose output is bf16.
        window: keys that a row of a causal call sees, its own included; 0: all.
        page: keys per page; 0: no pages.
        planted: share of the tiles that is to be skipped; None: N(0,1).
        skipping: whether our skip kernels are measured too.
        pre_pass: whether our dense kernel is also measured in bf16, and on twice the rows over the same keys.
        peers: those that are measured.
        goals: what must be reached.
        group: of rows, for choosing them.
    """

    label: str
    lens: tuple[int, ...]
    rows: tuple[int, ...]
    mask: str = "causal"
    heads_q: int = 64
    heads_kv: int = 4
    head_dim: int = 128
    head_dim_v: int = 128
    dtype: str = "bf16"
    window: int = 0
    page: int = 0
    planted: float | None = None
    skipping: bool = False
    pre_pass: bool = False
    peers: tuple[str, ...] = _DENSE_PEERS
    goals: tuple[Goal, ...] = ()
    group: str = "dense"

    @property
    def ragged(self) -> bool:
        """Whether requests differ in their numbers of queries or keys."""
        return len({*self.rows}) > 1 or len({*self.lens}) > 1

    @property
    def causal(self) -> bool:
        """Whether a row sees only the keys up to its own."""
        return self.mask == "causal"

    @property
    def shape(self) -> Shape:
        """Of self-attention, all requests alike; Dv is not in it."""
        [seqlen] = {*self.lens} | {*self.rows}
        return Shape(seqlen, self.mask, self.heads_q, self.heads_kv, self.head_dim, self.dtype, self.batch)

    @property
    def flops(self) -> float:
        """By the convention of :class:`bench.shape.Shape`: of the pairs under a diagonal half count."""
        pairs = 0.0
        for rows, keys in zip(self.rows, self.lens, strict=True):
            if not self.causal:
                pairs += rows * keys
            elif not self.window:
                pairs += rows * keys - rows**2 / 2
            else:  # rows that see fewer keys than the window, as there are none before them
                fewer = max(self.window - (keys - rows), 0)
                pairs += rows * self.window - fewer**2 / 2
        return 2.0 * self.heads_q * (self.head_dim + self.head_dim_v) * pairs


def _work(label: str, batch: int, length: int, *goals: Goal, rows: int = 0, **fields: Any) -> Work:
    made = Work(label, (length,) * batch, (rows or length,) * batch, goals=goals)
    fields.setdefault("head_dim_v", fields.get("head_dim", made.head_dim))
    return replace(made, **fields)


def _over_best(bar: float) -> Goal:
    return Goal(DENSE, BEST, bar)


_LEAST = _over_best(0.95)  # of shapes that no table names
_NOTHING_SKIPPED = tuple(Goal(skip_name(threshold), DENSE, 0.98) for threshold in SKIP_NOTHING)
_SKIP = skip_name(THRESHOLD)
_1, _2, _4, _8, _16, _32, _64 = (k * 1024 for k in (1, 2, 4, 8, 16, 32, 64))
_D64 = {"head_dim": 64, "heads_q": 32, "heads_kv": 8}
_D256 = {"head_dim": 256, "heads_q": 16, "heads_kv": 8}
_MLA = {"head_dim": 192, "head_dim_v": 128, "heads_q": 128, "heads_kv": 128}
_LLAMA = {"heads_q": 32, "heads_kv": 8}


def _heads(count: int) -> dict[str, int]:
    return {"heads_q": count, "heads_kv": count}


def _dense() -> Iterator[Work]:
    lead, skip = _over_best(1.02), _NOTHING_SKIPPED
    yield _work("d128 causal 16k", 1, _16, lead, *skip, skipping=True)
    yield _work("d128 causal 64k", 1, _64, lead)
    yield _work("d128 full 16k", 1, _16, lead, *skip, skipping=True, mask="full")
    for mask in ("causal", "full"):
        equal: dict[str, Any] = {"mask": mask, "skipping": True}
        yield _work(f"d64 {mask} 16k q32/kv8", 1, _16, _over_best(1.0), *skip, **equal, **_D64)
        yield _work(f"d256 {mask} 8k q16/kv8", 1, _8, _over_best(1.0), *skip, **equal, **_D256)
    yield _work("d192/128 causal 8k q128/kv128", 1, _8, _over_best(1.0), *skip, skipping=True, **_MLA)
    yield _work("d96 causal 8k q32/kv32", 1, _8, _over_best(1.0), head_dim=96, **_heads(32))
    for dim in (72, 80):
        yield _work(f"d{dim} full 4k b8, 16 heads", 8, _4, _over_best(1.0), head_dim=dim, mask="full", **_heads(16))
    yield _work("d128 full 32k, 24 heads", 1, _32, lead, mask="full", **_heads(24))
    yield _work("d128 window 4096 at 32k", 1, _32, lead, window=4096)


def _chunked() -> Iterator[Work]:
    for page in (16, 64, 128):
        goal = Goal(DENSE, "fa3", 1.0)
        label = f"2k over 32k b4 q32/kv8, pages of {page}"
        yield _work(label, 4, _32, goal, rows=_2, page=page, peers=("fa3",), **_LLAMA)


def _ragged() -> Iterator[Work]:
    batches = {
        "12 requests of 64 to 8192": (*drawn_lengths(64, _8, 10), 64, _8),
        "64 requests of 256 to 1024": drawn_lengths(256, _1, 64),
    }
    for label, lens in batches.items():
        made = Work(f"{label}, q32/kv8", lens, lens, peers=("fa3", "fa4"), goals=(_over_best(1.02),))
        yield replace(made, heads_q=32, heads_kv=8)


def _planted() -> Iterator[Work]:
    bars = {0.5: 1.27, 0.75: 1.54, 0.9: 1.76}
    beside = {0.5: Goal(_SKIP, BEST, 1.28), 0.9: Goal(_SKIP, f"fmha_v2 skip@{THRESHOLD:g}", 1.35)}
    peers = {0.5: _DENSE_PEERS, 0.9: ("fmha_v2",)}
    for share, bar in bars.items():
        goals = [Goal(_SKIP, DENSE, bar), *([beside[share]] if share in beside else [])]
        label = f"d128 causal 16k, planted {share:.0%}"
        yield _work(label, 1, _16, *goals, planted=share, skipping=True, peers=peers.get(share, ()))
    others: dict[str, tuple[int, dict[str, int]]] = {
        "d64 causal 16k q32/kv8": (_16, _D64),
        "d192/128 causal 8k q128/kv128": (_8, _MLA),
        "d256 causal 8k q16/kv8": (_8, _D256),
    }
    for label, (length, heads) in others.items():
        for share in _SHARES:
            made = _work(f"{label}, planted {share:.0%}", 1, length, planted=share, skipping=True, peers=(), **heads)
            bound = 1 / (1 - share * made.head_dim_v / (made.head_dim + made.head_dim_v))  # Q.K is always computed
            yield replace(made, goals=(Goal(_SKIP, DENSE, round(0.93 * bound, 3)),))


def _eight_bit() -> Iterator[Work]:
    kind: dict[str, Any] = {"dtype": "e4m3", "peers": _EIGHT_BIT_PEERS}
    lead = _over_best(1.03)
    yield _work("e4m3 d128 causal 16k", 1, _16, lead, *_NOTHING_SKIPPED, skipping=True, **kind)
    yield _work("e4m3 d128 causal 64k", 1, _64, lead, **kind)
    for share, bar in ((0.5, 1.2), (0.9, 1.5)):
        goal = Goal(_SKIP, DENSE, bar)
        label = f"e4m3 d128 causal 16k, planted {share:.0%}"
        yield _work(label, 1, _16, goal, planted=share, skipping=True, dtype="e4m3", peers=())
    # 512 rows x 32 heads are one item for each of 128 CTAs, twice the rows are two, and V is made ready once in both:
    # twice the rows take 1.9 times as long if that is 10 % of a call.
    cheap = Goal(DENSE, TWICE, 1.9)
    label = "e4m3 512 over 64k q32/kv8, pages of 64"
    chunk: dict[str, Any] = {"rows": 512, "page": 64, "pre_pass": True, "dtype": "e4m3", "peers": ("fa3",)}
    yield _work(label, 1, _64, cheap, _LEAST, **chunk, **_LLAMA)


def _others() -> Iterator[Work]:
    for batch, length in ((16, _1), (4, _4), (1, _2), (1, _8)):
        yield _work(f"d128 causal {length // 1024}k b{batch} q32/kv8", batch, length, _LEAST, **_LLAMA)
    yield _work("d128 full 8k b2, 12 heads", 2, _8, _LEAST, mask="full", **_heads(12))
    yield _work("d128 causal 4k b4, 16 heads", 4, _4, _LEAST, **_heads(16))
    for dim in (112, 160):
        yield _work(f"d{dim} causal 8k q32/kv8", 1, _8, _LEAST, head_dim=dim, **_LLAMA)
    yield _work("fp16 d128 causal 8k q32/kv8", 1, _8, _LEAST, dtype="fp16", **_LLAMA)
    yield _work("d64 full 4k b4, 16 heads", 4, _4, _LEAST, mask="full", head_dim=64, **_heads(16))
    yield _work("d256 causal 2k b4 q16/kv8", 4, _2, _LEAST, **_D256)
    yield _work("d128 4k over 512 q32/kv8", 1, 512, _LEAST, rows=_4, mask="full", **_LLAMA)


def _all() -> Iterator[Work]:
    groups = {"dense": _dense, "chunked": _chunked, "ragged": _ragged, "planted": _planted, "e4m3": _eight_bit}
    for group, rows in {**groups, "others": _others}.items():
        yield from (replace(work, group=group) for work in rows())


WORKS = (*_all(),)
