"""What ``bench skip`` launches: the calls of a row at any threshold, for both of its passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import skimattn
import torch

from . import decode_calls, decode_work, graded, prefill_calls, prefill_measure, prefill_work
from .checks import Check
from .contender import first, kernel_of
from .decode_checks import check_outputs
from .decode_inputs import Cache, cache_of, planted_counts
from .decode_measure import COLD_BYTES, SAMPLE_MS, calls_of, copies_of
from .graded import Graded
from .host_shapes import in_turn
from .inputs import BLOCK, Inputs, tile_counts
from .names import DENSE
from .prefill_checks import check_output, sampled
from .prefill_inputs import Data, data_of
from .qkv_file import Tensors
from .skip_work import Call as CallShape
from .skip_work import Work
from .timing import Call, Repeated, graphed

Outputs = list[torch.Tensor]
Params = skimattn.Params


@dataclass
class Bench(prefill_measure.Bench):
    """What every row of a run shares: of prefill, and of decode steps.

    Args:
        under_load: says what clocks and power are while a call is repeated that takes so many milliseconds.
        pack: makes one call of a number of calls, taken in turn from the given ones.
        cold_bytes: how much a decode step reads at least until it comes back to the same copy of a cache.
        sample_ms: of decode steps behind one event, at a guess.
    """

    under_load: Callable[[Call, float], dict[str, object]] = lambda call, ms: {}
    pack: Callable[[Sequence[Call], int], Call] = graphed
    cold_bytes: int = COLD_BYTES
    sample_ms: float = SAMPLE_MS


class Subject(Protocol):
    """A row's tensors, and the calls on them.

    Args:
        counted: how many of the calls make up what is counted: one for each layer; one of the copies of a cache.
    """

    counted: int

    def calls(self, threshold: float | None, count: bool = False) -> list[Params]:
        """Call objects: dense without a threshold, the stat kernel with ``count``."""
        ...

    def outputs(self, calls: Sequence[Params]) -> Outputs:
        """Make the calls; what is to be checked."""
        ...

    def packed(self, calls: Sequence[Params]) -> tuple[Call, int]:
        """One sample of these calls, and how often the row is computed in it."""
        ...

    def expected(self, params: Params, point: int) -> tuple[int, int | None] | None:
        """(visited, skipped) tiles of all counted calls at a threshold of the row. None: not known."""
        ...

    def checks(self, outputs: Outputs) -> Iterable[Check]:
        """Whether outputs of the dense kernel are right."""
        ...


def launches(calls: Iterable[Params]) -> list[Call]:
    """What repeats them."""
    return [partial(skimattn.launch, params) for params in calls]


class Prefill:
    """A call of ``bench rows``, or one for each layer of a dump.

    Args:
        call: the row; each of the layers is one.
        datas: the tensors of each layer.
        planted: what :mod:`bench.graded` made them from.
    """

    def __init__(self, call: prefill_work.Work, datas: Sequence[Data], planted: Graded | None = None) -> None:
        """Nothing is launched yet."""
        self.call, self.datas, self.planted, self.counted = call, datas, planted, len(datas)

    def calls(self, threshold: float | None, count: bool = False) -> list[Params]:
        """Of each layer."""
        return [prefill_calls.call_of(self.call, data, threshold, count) for data in self.datas]

    def outputs(self, calls: Sequence[Params]) -> Outputs:
        """Of each layer."""
        return [first(skimattn.launch(params)).flatten(0, -3) for params in calls]

    def packed(self, calls: Sequence[Params]) -> tuple[Call, int]:
        """Layer after layer, as often as a pair of events needs."""
        times = -(-prefill_measure.calls_of(self.call) // len(calls))
        return Repeated(in_turn(launches(calls)), times * len(calls)), times

    def expected(self, params: Params, point: int) -> tuple[int, int | None] | None:
        """Of windows nothing is known, of what was not planted the number of tiles."""
        if self.call.window:
            return None
        kernel: dict[str, Any] = kernel_of(params)
        drop = np.zeros((self.call.heads_kv, -(-max(self.call.lens) // BLOCK)), np.bool_)
        if self.planted:
            if kernel["order"] != "sink_first":
                raise ValueError(f"order: expected sink_first, on which planted counts rest (got {kernel['order']})")
            drop = self.planted.drops[point]
        inputs = Inputs(self.datas[0].q, self.datas[0].k, self.datas[0].v, drop)
        visited, skipped = tile_counts(inputs, self.call.shape, kernel["tile"][1], kernel["group_rows"])
        return len(self.datas) * visited, skipped if self.planted else None

    def checks(self, outputs: Outputs) -> Iterable[Check]:
        """Of each layer, as ``bench rows`` does."""
        for data, out in zip(self.datas, outputs, strict=True):
            yield from check_output(DENSE, out, sampled(self.call, data), self.call, None)


class Decode:
    """A step of ``bench decode``, on copies of its cache in turn.

    Args:
        call: the row.
        cache: its tensors.
        bench: how many calls make a sample.
        drops: of :mod:`bench.graded`, where that made the cache.
    """

    counted = 1

    def __init__(self, call: decode_work.Work, cache: Cache, bench: Bench, drops: Sequence[torch.Tensor] = ()) -> None:
        """Nothing is launched yet."""
        self.call, self.cache, self.bench, self.drops = call, cache, bench, drops

    def calls(self, threshold: float | None, count: bool = False) -> list[Params]:
        """On each copy, into one output."""
        out = decode_calls.empty_output(self.call, self.cache)
        stats = torch.zeros(2, dtype=torch.int64, device=out.device) if count else None
        copies = range(len(self.cache.tables))
        return [decode_calls.call_of(self.call, self.cache, copy, out, threshold, stats) for copy in copies]

    def outputs(self, calls: Sequence[Params]) -> Outputs:
        """On the last copy, which is what :mod:`bench.decode_checks` looks at."""
        return [[first(skimattn.launch(params)) for params in calls][-1].flatten(0, -3)]

    def packed(self, calls: Sequence[Params]) -> tuple[Call, int]:
        """As many in a CUDA graph as ``bench decode`` takes."""
        count = calls_of(self.call, len(calls), self.bench.sample_ms)
        return self.bench.pack(launches(calls), count), count

    def expected(self, params: Params, point: int) -> tuple[int, int | None] | None:
        """On copy 0."""
        found = skimattn.explain(params)
        assert found.spec is not None and found.tile is not None and found.group_rows is not None
        cache = replace(self.cache, drop=self.drops[point] if self.drops else None)
        decodes = found.spec.phase == "decode"
        visited, skipped = planted_counts(self.call, cache, found.tile[1], decodes, found.group_rows)
        return visited, skipped if self.drops else None

    def checks(self, outputs: Outputs) -> Iterable[Check]:
        """As ``bench decode`` does."""
        return check_outputs({DENSE: outputs[0]}, self.call, self.cache)


def subject_of(work: Work, bench: Bench, call: CallShape | None = None) -> Subject:
    """The tensors of a row, or of a smaller ``call`` with the same inputs."""
    call = call or work.call
    thresholds = [(point.threshold, point.share) for point in work.points]
    if isinstance(call, decode_work.Work):
        copies = copies_of(call, bench.cold_bytes) if call is work.call else 1
        if work.inputs != "planted":
            return Decode(call, cache_of(call, copies, bench.device), bench)
        graded_cache = graded.decode(call, copies, thresholds, bench.device)
        return Decode(call, graded_cache.cache, bench, graded_cache.drops)
    if work.layers is not None:
        read = [work.layers.read(number, bench.device) for number in work.layers.numbers]
        return Prefill(call, [data_of_layer(tensors) for tensors in read])
    if work.inputs != "planted":
        return Prefill(call, [data_of(call, bench.device)])
    made = graded.prefill(call.shape, thresholds, bench.device)
    return Prefill(call, [data_of_layer((made.inputs.q[0], made.inputs.k[0], made.inputs.v[0]))], made)


def data_of_layer(tensors: Tensors) -> Data:
    """The tensors of one request as a row of ``bench rows`` has them."""
    q, k, v = tensors
    offsets = torch.tensor([0, len(q)], dtype=torch.int32, device=q.device)
    return Data(q, k, v, offsets, offsets, offsets[1:])
