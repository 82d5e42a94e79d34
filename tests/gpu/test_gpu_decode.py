"""Decode on a GPU, through ``launch``: the cases of the emulator, and what only a GPU can show.

Graphs whose lengths, tables and thresholds change between replays, launches that follow each other without a pause,
streams, and batches that fill the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import skimattn
import torch

from tests.helpers.bodies import name, run_and_check
from tests.helpers.build import BAD_PAGE, Built
from tests.helpers.cases import Case, Content
from tests.helpers.check import check
from tests.helpers.decode_cases import (
    cache_cases,
    decode_border_cases,
    decode_covering_cases,
    decode_long_cases,
    decode_mixed_cases,
    decode_pattern_cases,
    decode_start_cases,
    decode_tree_cases,
)
from tests.helpers.decode_properties import (
    DECODE_PROPERTIES,
    LONG,
    LONGS,
    MIXED,
    PAGED,
    RAGGED,
    batch_does_not_matter,
    ways_agree,
)
from tests.helpers.few_rows_cases import few_rows_cases
from tests.helpers.gpu import gpu_arch
from tests.helpers.gpu_calls import on_gpu, reset, same, snapshot
from tests.helpers.properties import Target
from tests.helpers.run import params_of, result_of

CUDA: Any = torch.cuda
TARGET = Target("gpu", gpu_arch())
ON_SM90 = pytest.mark.skipif(TARGET.arch != "sm90", reason="8-bit keys under 16-bit queries are decoded on SM90 only")
CASES = (*decode_covering_cases(), *decode_border_cases(), *decode_start_cases(), *decode_pattern_cases()[1::4])
CASES += decode_tree_cases()
# Many leaves, groups and requests; more parts than a device runs at once.
WIDE = replace(
    RAGGED, lens=((1, 9000), (4, 2100), (16, 4000), (1, 20000), (2, 0), (3, 513), (0, 40)), heads_q=16, heads_kv=4
)
# Room for 4 requests of 4 rows, of which replays use what they like.
ROOM = replace(
    RAGGED,
    lens=((4, 4300),) * 4,
    q_layout="batched",
    kv_layout="batched",
    seqused=True,
    threshold_kind="head",
    thresholds=(1e-3, 1e-2),
)
LENGTHS = ((4300, 4300, 4300, 4300), (1, 0, 511, 512), (513, 4096, 64, 2), (0, 0, 0, 0), (4097, 3, 2048, 2049))


@pytest.mark.parametrize("case", map(TARGET.of, CASES), ids=name)
def test_cases(case: Case) -> None:
    run_and_check(case, "gpu")


@pytest.mark.parametrize("case", map(TARGET.of, decode_mixed_cases()), ids=name)
def test_both_phases_in_one_call(case: Case) -> None:
    run_and_check(case, "gpu")


@ON_SM90
@pytest.mark.parametrize("case", (*cache_cases(), *few_rows_cases()), ids=name)
def test_8_bit_caches(case: Case) -> None:
    run_and_check(case, "gpu")


@pytest.mark.parametrize("case", map(TARGET.of, decode_long_cases()[1:]), ids=name)
def test_long(case: Case) -> None:
    run_and_check(case, "gpu")


@pytest.mark.parametrize("holds", DECODE_PROPERTIES, ids=lambda holds: holds.__name__)
def test_property(holds: Callable[[Target], None]) -> None:
    holds(TARGET)


@pytest.mark.parametrize("case", [WIDE, replace(WIDE, mask="window", window=(3000, 0), skip="skip"), MIXED, PAGED])
def test_a_request_has_its_bits_in_any_batch(case: Case) -> None:
    batch_does_not_matter(TARGET.of(case), TARGET, (2, 17, 64))


@pytest.mark.parametrize("case", [WIDE, *LONGS[:4]], ids=lambda case: f"{case.mask}-{case.skip}-d{case.head_dim}")
def test_reruns_give_the_same_bits(case: Case) -> None:
    ways_agree(TARGET.of(case), TARGET, [{}])
    built, _, params = on_gpu(TARGET.of(case))
    skimattn.launch(params)
    first = snapshot(built)
    for rerun in range(30):
        reset(built)
        skimattn.launch(params)
        assert same(first, snapshot(built)), f"rerun {rerun} differs"


def used(built: Built, held: list[Content], lengths: Sequence[int]) -> tuple[Built, list[Content]]:
    """The call with so many keys in use, as the oracle sees it."""
    case = replace(built.case, phase="mixed", lens=tuple((4, keys) for keys in lengths))
    parts = zip(held, lengths, strict=True)
    return replace(built, case=case), [replace(one, k=one.k[:keys], v=one.v[:keys]) for one, keys in parts]


def set_lengths(built: Built, held: list[Content], lengths: Sequence[int]) -> None:
    """In place: lengths, and NaN behind them."""
    built.tensors["seqused_k"].copy_(torch.tensor(lengths, dtype=torch.int32))
    for index, (one, keys) in enumerate(zip(held, lengths, strict=True)):
        for tensor_name, source in (("k", one.k), ("v", one.v)):
            rows = built.tensors[tensor_name][index]
            rows[:keys].copy_(source[:keys])
            rows[keys:].fill_(float("nan"))


def captured(params: skimattn.Params) -> Any:
    skimattn.launch(params)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        skimattn.launch(params)
    return graph


def replayed(graph: Any, built: Built) -> dict[str, torch.Tensor]:
    reset(built)
    graph.replay()
    torch.cuda.synchronize()
    return snapshot(built)


def launched(built: Built) -> dict[str, torch.Tensor]:
    """What a launch gives that has nothing to do with the captured one."""
    reset(built)
    skimattn.launch(params_of(built))
    torch.cuda.synchronize()
    return snapshot(built)


@pytest.mark.parametrize("skip", ["dense", "skip", "stat"])
@pytest.mark.parametrize("mask", ["causal", "window"])
def test_graph_replays_follow_lengths_and_thresholds(mask: str, skip: str) -> None:
    case = TARGET.of(replace(ROOM, mask=mask, window=(1500, 0) if mask == "window" else (-1, -1), skip=skip))
    built, held, params = on_gpu(case)
    graph = captured(params)
    for turn, lengths in enumerate(LENGTHS * 2):
        set_lengths(built, held, lengths)
        if skip != "dense":
            value = (1e-3, 0.0, 1e-2, 1.0)[turn % 4]
            built.tensors["skip_softmax_threshold"].fill_(value)
            for one in held:
                one.threshold = np.full(case.heads_q, value, np.float32)
        got = replayed(graph, built)
        check(result_of(*_first(used(built, held, lengths))), used(built, held, lengths)[1])
        assert same(got, launched(built)), f"lengths {lengths}: a replay differs from a launch"


def _first(call: tuple[Built, list[Content]]) -> tuple[Built, torch.Tensor]:
    return call[0], call[0].tensors["out"]


def test_graph_replays_follow_page_tables() -> None:
    """Pages move, and what the table holds behind a request's end is no page."""
    case = replace(ROOM, q_layout="batched", kv_layout="nhd", page_size=64, seqused=False)
    built, held, params = on_gpu(TARGET.of(case))
    graph = captured(params)
    table, original = built.tensors["page_table"], built.tensors["page_table"].clone()
    caches = {name: built.tensors[name].clone() for name in ("k", "v")}
    generator = torch.Generator().manual_seed(1)
    for turn, lengths in enumerate(LENGTHS):
        order = torch.randperm(len(caches["k"]), generator=generator).to(table.device)
        for cache, pages in caches.items():
            built.tensors[cache][order] = pages
        built.tensors["seqused_k"].copy_(torch.tensor(lengths, dtype=torch.int32))
        for index, keys in enumerate(lengths):
            count = -(-keys // 64)
            table[index, :count] = order[original[index, :count].long()].int()
            table[index, count:] = (-1, BAD_PAGE)[turn % 2]
        got = replayed(graph, built)
        check(result_of(*_first(used(built, held, lengths))), used(built, held, lengths)[1])
        assert same(got, launched(built)), f"lengths {lengths}: a replay differs from a launch"


def test_graph_of_both_phases() -> None:
    """Lengths decide between the phases, from replay to replay."""
    case = TARGET.of(replace(ROOM, lens=((40, 4300),) * 3, phase="mixed"))
    built, held, params = on_gpu(case)
    graph = captured(params)
    for lengths in ((4300, 100, 2560), (2559, 2560, 0), (1, 40, 39), (4300, 4300, 4300)):
        set_lengths(built, held, lengths)
        got = replayed(graph, built)
        now = replace(built, case=replace(case, lens=tuple((40, keys) for keys in lengths)))
        parts = zip(held, lengths, strict=True)
        check(result_of(now, now.tensors["out"]), [replace(x, k=x.k[:n], v=x.v[:n]) for x, n in parts])
        assert same(got, launched(built))


def test_graph_with_parallel_branches() -> None:
    """Launches that run at once inside a graph share neither tickets nor partial results."""
    calls = [on_gpu(TARGET.of(replace(WIDE, seed=seed))) for seed in range(4)]
    wanted = [launched(built) for built, _, _ in calls]
    assert not same(wanted[0], wanted[1])
    streams = [CUDA.Stream() for _ in calls]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        main = torch.cuda.current_stream()
        for stream, (_, _, params) in zip(streams, calls, strict=True):
            stream.wait_stream(main)
            skimattn.launch(params, stream=stream)
        for stream in streams:
            main.wait_stream(stream)
    for _ in range(20):
        for built, _, _ in calls:
            reset(built)
        graph.replay()
        torch.cuda.synchronize()
        assert all(same(want, snapshot(built)) for want, (built, _, _) in zip(wanted, calls, strict=True))


def test_streams_at_once() -> None:
    calls = [on_gpu(TARGET.of(replace(case, seed=seed))) for seed in range(2) for case in (WIDE, LONG, MIXED)]
    wanted = [launched(built) for built, _, _ in calls]
    streams = [CUDA.Stream() for _ in calls]
    for _ in range(10):
        for built, _, _ in calls:
            reset(built)
        torch.cuda.synchronize()
        for stream, (_, _, params) in zip(streams, calls, strict=True):
            skimattn.launch(params, stream=stream)
        torch.cuda.synchronize()
        assert all(same(want, snapshot(built)) for want, (built, _, _) in zip(wanted, calls, strict=True))


def test_launches_of_other_shapes_follow_each_other() -> None:
    """On one stream, without a pause, over what the launches before left in the memory that workspaces come from."""
    calls = [on_gpu(TARGET.of(case)) for case in (LONG, WIDE, MIXED, replace(PAGED, skip="skip"), RAGGED)]
    wanted = [launched(built) for built, _, _ in calls]
    for turn in range(10):
        for built, _, _ in calls:
            reset(built)
        del built
        for _, _, params in calls[turn % 5 :] + calls[: turn % 5]:
            skimattn.launch(params)
            if turn % 2:
                torch.full((1 << 22,), float("nan"), device="cuda")  # what the next workspace may be allocated from
        torch.cuda.synchronize()
        assert all(same(want, snapshot(built)) for want, (built, _, _) in zip(wanted, calls, strict=True))
