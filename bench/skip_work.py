"""The rows of ``bench skip``: a shape, what its inputs are, and the scale factors that it is measured at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import decode_work, prefill_work
from .goal import Goal
from .qkv_file import Layers, layers_of

Call = prefill_work.Work | decode_work.Work
# Published for Qwen3-30B-A3B-Instruct-2507: factor by the sparsity that it is to give; threshold = factor / length.
PREFILL = {
    **{0.1: 18.76, 0.2: 44.37, 0.3: 104.97, 0.4: 248.40, 0.5: 587.18},
    **{0.6: 1390.63, 0.7: 3293.04, 0.8: 7799.91, 0.9: 18471.56},
}
DECODE = {0.1: 0.32, 0.2: 0.86, 0.3: 2.30, 0.4: 6.17, 0.5: 16.52, 0.6: 44.26, 0.7: 118.62, 0.8: 317.99, 0.9: 852.20}
_WAN_SHARES = (0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
_WAN_LEAST, _WAN_MOST = 8.0, 8000.0  # evenly spaced over the logarithm; the last is a threshold of 0.5 at 16k
WAN = dict(zip(_WAN_SHARES, map(float, np.geomspace(_WAN_LEAST, _WAN_MOST, len(_WAN_SHARES))), strict=True))
_DTYPES = ("bf16", "e4m3")
OF_BOUND = 0.9  # of the speed that the achieved sparsity allows, which real inputs must reach


@dataclass(frozen=True)
class Point:
    """A threshold, the factor that it comes from, and the share of the tiles that it skips where they are planted."""

    factor: float
    threshold: float
    share: float


@dataclass(frozen=True)
class Work:
    """A call at several thresholds.

    Args:
        call: the row of ``bench rows`` (prefill) or ``bench decode`` that it is, nothing planted.
        inputs: ``planted``: by :mod:`bench.graded`, so that each factor skips its share; ``random``: N(0,1); ``real``.
        factors: by share that they are to skip, rising; thresholds are these divided by the length.
        group: of rows, for choosing them.
        layers: of a model's q, k and v, which are launched one after the other; None: made-up inputs.
    """

    call: Call
    inputs: str
    factors: Mapping[float, float]
    group: str
    layers: Layers | None = None
    goals: tuple[Goal, ...] = field(default=(), init=False)  # they follow from what is counted

    @property
    def label(self) -> str:
        """Names the row."""
        return f"{self.call.label}, {self.inputs}"

    @property
    def length(self) -> int:
        """Keys of a request."""
        return max(self.call.lens)

    @property
    def points(self) -> tuple[Point, ...]:
        """What is measured. Factors that would give thresholds of 1 or more, which mean nothing, are left out."""
        pairs = self.factors.items()
        return tuple(Point(factor, factor / self.length, share) for share, factor in pairs if factor < self.length)

    @property
    def left_out(self) -> tuple[float, ...]:
        """The factors that the length is too short for."""
        return tuple(factor for factor in self.factors.values() if factor >= self.length)

    def allowed(self, sparsity: float) -> float:
        """The speed over dense that a sparsity allows: Q.K, or reading K, is always there."""
        of_values = self.call.head_dim_v / (self.call.head_dim + self.call.head_dim_v)
        return 1 / (1 - sparsity * of_values)


def _rows(call: Call, factors: Mapping[float, float], group: str) -> Iterator[Work]:
    return (Work(call, inputs, factors, group) for inputs in ("planted", "random"))


def _prefill(dtype: str) -> Iterator[Work]:
    for length in (16384, 65536):
        label = f"prefill b1 {length // 1024}k {dtype}"
        yield from _rows(prefill_work.Work(label, (length,), (length,), dtype=dtype), PREFILL, "prefill")


def _decode(cache: str) -> Iterator[Work]:
    for length in (16384, 65536):
        label = f"decode b64 {length // 1024}k {cache}"
        yield from _rows(decode_work.Work(label, (length,) * 64, (1,) * 64, cache=cache), DECODE, "decode")


def _wan() -> Iterator[Work]:
    for length, name in ((16384, "16k"), (32768, "32k"), (40960, "41k"), (65536, "65k")):
        made = prefill_work.Work(f"Wan2.2 {name} bf16", (length,), (length,), mask="full", heads_q=24, heads_kv=24)
        yield from _rows(made, WAN, "wan")


def _all() -> Iterator[Work]:
    for make in (_prefill, _decode):
        for dtype in _DTYPES:
            yield from make(dtype)
    yield from _wan()


def real_rows(files: Sequence[Path]) -> list[Work]:
    """Rows of the layers in files of ``bench dump``, those of a kind together; as :func:`bench.qkv_file.layers_of`."""
    return [_real(layers) for path in files for layers in layers_of(path)]


def _real(layers: Layers) -> Work:
    kind = layers.kind
    window = f" window {kind.window}" if kind.window else ""
    label = f"{layers.model}, {len(layers.numbers)} layers{window}, {kind.rows} {kind.dtype}"
    call = prefill_work.Work(
        label,
        (kind.rows,),
        (kind.rows,),
        heads_q=kind.heads_q,
        heads_kv=kind.heads_kv,
        head_dim=kind.head_dim,
        head_dim_v=kind.head_dim,
        dtype=kind.dtype,
        window=kind.window,
    )
    return Work(call, "real", PREFILL, "real", layers)


WORKS = (*_all(),)
