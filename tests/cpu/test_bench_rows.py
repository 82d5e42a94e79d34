"""``bench rows`` with a fake timer and CPU tensors: rows, inputs, calls, checks, goals and tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import skimattn
import torch

from bench import plot, prefill_calls, prefill_checks, results, rows
from bench.checks import attended
from bench.compare import fastest
from bench.contender import Contender
from bench.goal import Goal
from bench.names import BEST, DENSE, IN_BF16, READ, SKIP_NOTHING, THRESHOLD, TWICE, skip_name
from bench.peers import MissingError, NotRun
from bench.prefill_inputs import Data, data_of, request_keys
from bench.prefill_measure import LEAST_ROUNDS, Bench, calls_of, measure, rounds_of
from bench.prefill_table import case_table, summary
from bench.prefill_work import WORKS, Work
from bench.timing import Call, Repeated
from tests.helpers.place_timer import PlaceTimer

SKIP = skip_name(THRESHOLD)
GOALS = (Goal(DENSE, "fa3", 0.9), Goal(DENSE, BEST, 1.0))
SMALL = Work("small", (200, 200), (200, 200), heads_q=4, heads_kv=2, head_dim=64, head_dim_v=64, goals=GOALS)
PLANTED = replace(
    SMALL,
    label="small, planted 50%",
    group="planted",
    lens=(1024,),
    rows=(1024,),
    planted=0.5,
    skipping=True,
    goals=(Goal(SKIP, DENSE, 1.2), Goal(SKIP, BEST, 1.2), Goal(SKIP, f"fmha_v2 skip@{THRESHOLD:g}", 1.35)),
)
PAGED = replace(SMALL, lens=(200, 130), rows=(40, 40), page=16, heads_q=8)


@pytest.fixture(autouse=True)
def no_built_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an earlier build left in the checkout is not looked at."""
    monkeypatch.setenv("SKIMATTN_KERNELS", str(tmp_path))


def by_definition(name: str, factor: float = 1.0) -> prefill_calls.Maker:
    """A peer that computes every row in float64, ``factor`` wrong."""

    def make(work: Work, data: Data) -> list[Contender]:
        def call() -> torch.Tensor:
            parts = []
            for request, count in enumerate(work.rows):
                start = int(data.offsets[request])
                k, v = request_keys(work, data, request)
                ends = torch.arange(count) + len(k) - count if work.causal else None
                parts.append(attended(data.q[start : start + count], k, v, ends, work.window))
            return (factor * torch.cat(parts)).to(torch.float16 if work.dtype == "fp16" else torch.bfloat16)

        return [Contender(name, call)]

    return make


def bench_of(**makers: prefill_calls.Maker) -> Bench:
    return Bench("cpu", PlaceTimer(), 3, makers)


def shrunk(work: Work) -> Work:
    """The same kind of row, small enough for the reference."""
    most = 1024 if work.planted is not None else 320
    by = max(max(work.lens), max(work.rows)) / most
    lens, counts = ([max(1, int(n / by)) for n in numbers[:3]] for numbers in (work.lens, work.rows))
    heads = min(2, work.heads_q // work.heads_kv)
    return replace(work, lens=(*lens,), rows=(*counts,), heads_q=heads, heads_kv=1, window=int(work.window / by))


def test_rows_of_the_command() -> None:
    assert len({work.label for work in WORKS}) == len(WORKS) and len(rows.COMMAND.groups) == 6
    for work in WORKS:
        assert len(work.lens) == len(work.rows) and work.heads_q % work.heads_kv == 0
        assert {*work.peers} <= {*prefill_calls.LOADERS} and work.goals, f"{work.label}: what must be reached?"
        for goal in work.goals:
            assert goal.of in {DENSE, *map(skip_name, work.thresholds)}
            wanted = {DENSE, TWICE} if goal.over.startswith("ours") else {BEST, *work.peers}
            assert goal.over in wanted or goal.over.partition(" ")[0] in work.peers
        elements = sum(work.rows) * work.heads_q * (work.head_dim + 5 * work.head_dim_v)
        assert elements * 2 < 30e9, f"{work.label}: q and five outputs"
        if work.rows == work.lens and not (work.ragged or work.window) and work.head_dim == work.head_dim_v:
            assert work.flops == work.shape.flops


def test_what_the_table_asks_for() -> None:
    """A few of its figures, read off the issue."""
    works = {work.label: {(goal.of, goal.over): goal.bar for goal in work.goals} for work in WORKS}
    nothing = {(skip_name(threshold), DENSE): 0.98 for threshold in SKIP_NOTHING}
    assert works["d128 causal 16k"] == {(DENSE, BEST): 1.02, **nothing}
    assert works["d192/128 causal 8k q128/kv128"] == {(DENSE, BEST): 1.0, **nothing}
    assert works["2k over 32k b4 q32/kv8, pages of 128"] == {(DENSE, "fa3"): 1.0}
    assert works["d128 causal 16k, planted 50%"] == {(SKIP, DENSE): 1.27, (SKIP, BEST): 1.28}
    assert works["d128 causal 16k, planted 90%"] == {(SKIP, DENSE): 1.76, (SKIP, "fmha_v2 skip@0.001"): 1.35}
    assert works["d192/128 causal 8k q128/kv128, planted 50%"] == {(SKIP, DENSE): round(0.93 * 1.25, 3)}
    assert works["e4m3 d128 causal 64k"] == {(DENSE, BEST): 1.03}
    others = [work for work in WORKS if work.group == "others"]
    assert len(others) == 12 and all(works[work.label] == {(DENSE, BEST): 0.95} for work in others)


@pytest.mark.parametrize(
    "changes",
    [{}, {"mask": "full"}, {"window": 30}, {"rows": (40, 10)}, {"rows": (40, 10), "page": 16}, {"window": 195}],
    ids=str,
)
def test_flops_are_those_of_visible_pairs(changes: dict[str, Any]) -> None:
    work = replace(SMALL, head_dim_v=32, **changes)
    pairs = 0
    for count, keys in zip(work.rows, work.lens, strict=True):
        for row in range(count):
            end = row + keys - count + 1 if work.causal else keys
            pairs += min(end, work.window or end)
    exact = 2 * work.heads_q * (64 + 32) * pairs
    assert exact * 0.95 < work.flops <= exact, "of the pairs on the diagonal half count"


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.label)
def test_every_row_is_computed_as_its_peers_compute_it(work: Work) -> None:
    small = shrunk(work)
    bench = bench_of(**{name: by_definition(name) for name in small.peers})
    case = measure(small, bench)
    ours = [DENSE, *map(skip_name, small.thresholds), *((IN_BF16, TWICE) if small.pre_pass else ())]
    assert [row["name"] for row in case["rows"]] == [*ours, *small.peers] and bench.not_run == []
    assert all(item["passed"] for item in case["checks"]), case["checks"]
    assert (case["counts"] is not None) == (small.planted is not None)
    assert case_table(case).count("goal: ") == len(work.goals)


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.label)
def test_tensors_of_a_row(work: Work) -> None:
    small = shrunk(work)
    data = data_of(small, "cpu")
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "e4m3": torch.float8_e4m3fn}
    assert {data.q.dtype, data.k.dtype, data.v.dtype} == {dtypes[small.dtype]}
    assert data.q.shape == (sum(small.rows), small.heads_q, small.head_dim) and data.v.shape[-1] == small.head_dim_v
    assert (data.offsets is data.offsets_k) == (small.rows == small.lens)
    for request, length in enumerate(small.lens):
        k, v = request_keys(small, data, request)
        assert k.shape == (length, 1, small.head_dim) and v.shape == (length, 1, small.head_dim_v)
        assert k.float().std() > 0.4 and v.float().std() > 0.8
    assert skimattn.explain(prefill_calls.call_of(small, data)).accepted
    if small.page:
        assert data.table is not None and data.k.shape[1] == small.page
        used = [data.table[request, : -(-n // small.page)].tolist() for request, n in enumerate(small.lens)]
        pages = [*chain(*used)]
        assert sorted(pages) == list(range(len(data.k))) and (len(pages) < 4 or pages != sorted(pages))


def test_calls_are_what_an_engine_would_write() -> None:
    uniform = prefill_calls.call_of(SMALL, data_of(SMALL, "cpu"))
    assert uniform.q.shape == (2, 200, 4, 64) and uniform.cu_seqlens_q is None and uniform.mask == "causal"
    paged = replace(PAGED, lens=(200, 200), dtype="e4m3")
    params = prefill_calls.call_of(paged, data_of(paged, "cpu"), THRESHOLD, count=True)
    assert params.q.shape == (2, 40, 8, 64) and params.max_seqlen_k == 200 and params.stats is not None
    assert params.out is not None and params.out.dtype == torch.bfloat16 and params.seqused_k is not None
    ragged = replace(SMALL, lens=(90, 200), rows=(90, 200), window=64)
    params = prefill_calls.call_of(ragged, data_of(ragged, "cpu"))
    assert params.cu_seqlens_q is params.cu_seqlens_k is not None and params.max_seqlen_q == 200
    assert (params.mask, params.window_size) == ("window", (63, 0))


def test_the_keys_of_twice_the_rows_are_the_same() -> None:
    work = replace(PAGED, lens=(200,), rows=(40,), dtype="e4m3", pre_pass=True)
    data = data_of(work, "cpu")
    found = {item.name: item for item in prefill_calls.ours(work, data)}
    dense, twice = found[DENSE].call(), found[TWICE].call()
    assert torch.equal(dense, twice) and found[TWICE].params is not None
    assert found[TWICE].params.q.shape == (1, 80, 8, 64)


@pytest.mark.parametrize(("factor", "work"), [(1.05, SMALL), (float("nan"), SMALL), (1.05, PAGED)])
def test_what_is_wrong_does_not_pass(factor: float, work: Work) -> None:
    case = measure(work, bench_of(fa3=by_definition("fa3", factor)))
    assert {item["of"] for item in case["checks"] if not item["passed"]} == {"fa3"}
    assert "FAILED: fa3" in case_table(case)


def test_checks_see_a_row_and_a_bit() -> None:
    data = data_of(SMALL, "cpu")
    wanted = prefill_checks.sampled(SMALL, data)
    [peer] = by_definition("fa3")(SMALL, data)
    right = peer.call()

    def failed(name: str, change: Callable[[torch.Tensor], object]) -> set[str]:
        out = right.clone()
        change(out)
        found = prefill_checks.check_output(name, out, wanted, SMALL, right)
        return {item.against for item in found if not item.passed}

    assert failed("fa3", lambda out: out) == set() == failed(skip_name(0), lambda out: out)
    assert failed("fa3", lambda out: out[:7].zero_()) >= {"float64 on sampled rows", DENSE}
    bits = failed(skip_name(0), lambda out: out.view(torch.int16)[3, 1, 5].bitwise_xor_(1))
    assert bits == {"elements unlike our dense bit for bit"}


def test_rounds_and_calls_fit_the_time() -> None:
    bench = Bench("cpu", PlaceTimer(), 10, {}, row_ms=1000.0)
    assert [rounds_of(ms, bench) for ms in (1.0, 125.0, 500.0)] == [10, 8, LEAST_ROUNDS]
    found = {work.label: calls_of(work) for work in WORKS}
    assert found["d128 causal 64k"] == found["d128 causal 16k"] == 1 and found["d128 causal 2k b1 q32/kv8"] == 10
    calls: list[int] = []
    Repeated(lambda: calls.append(1), 3)()
    timed: list[int] = []

    class Slow(PlaceTimer):
        def round(self, calls: Sequence[Call]) -> list[float]:
            timed.append(len(calls))
            return [2e4] * len(calls)

    case = measure(SMALL, Bench("cpu", Slow(), 10, {"fa3": by_definition("fa3")}))
    assert len(calls) == 3 and len(timed) == 1 + LEAST_ROUNDS and case["rows"][0]["ms"]["n"] == LEAST_ROUNDS
    assert case["calls_per_sample"] == 10 and case["rows"][0]["ms"]["median"] == 2e3


def test_a_planted_row_is_counted_and_drawn() -> None:
    def both(work: Work, data: Data) -> list[Contender]:
        [dense] = by_definition("fmha_v2")(work, data)
        return [dense, replace(dense, name="fmha_v2 skip@0.001")]

    work = replace(PLANTED, peers=("fa3", "fmha_v2"))
    case = measure(work, bench_of(fa3=by_definition("fa3"), fmha_v2=both))
    names = [DENSE, SKIP, "fa3", "fmha_v2", "fmha_v2 skip@0.001"]
    assert [row["name"] for row in case["rows"]] == names and case["counts"]["sparsity"] > 0.3
    assert [goal["over"] for goal in case["goals"]][::2] == [DENSE, "fmha_v2 skip@0.001"]
    assert case["goals"][1]["over"] in ("fa3", "fmha_v2") and all(item["passed"] for item in case["checks"])
    pairs = {(item["of"], item["over"]) for item in case["comparisons"]}
    assert (SKIP, "fmha_v2 skip@0.001") in pairs
    assert set(plot.speedups({"kind": "rows", "cases": [case]})) == {"skimattn small", "best peer small"}


def test_what_skips_is_no_dense_peer() -> None:
    times = {"fa3": [2.0], "fmha_v2": [3.0], "fmha_v2 skip@0.001": [1.0], DENSE: [0.1], READ: [0.01]}
    asked = (BEST, "fmha_v2", "fmha_v2 skip@0.001", "fa4")
    assert [fastest(times, peer) for peer in asked] == ["fa3", "fmha_v2", "fmha_v2 skip@0.001", None]


def test_what_fails_does_not_end_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(work: Work, data: Data) -> list[Contender]:
        raise MissingError("no such shape")

    def fails(work: Work, data: Data) -> list[Contender]:
        return [Contender("fa4", lambda: data.q.view(7))]

    bench = bench_of(fa3=refuses, fa4=fails)
    case = measure(SMALL, bench)
    assert [row["name"] for row in case["rows"]] == [DENSE]
    assert bench.not_run[0] == NotRun("fa3", "small", "no such shape") and bench.not_run[1].peer == "fa4"
    assert [goal["value"] for goal in case["goals"]] == [None, None]
    assert "0 of 2 goals reached, 2 not measured" in summary([case])

    def broken(*_: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(skimattn, "launch", broken)
    for makers, names in (({"fa3": by_definition("fa3")}, ["fa3"]), ({}, [])):
        bench = bench_of(**makers)
        assert [row["name"] for row in measure(PLANTED, bench)["rows"]] == names
        assert [item.peer for item in bench.not_run] == [DENSE, SKIP, "ours stat@0.001"]


def test_a_run_is_saved_after_every_row(tmp_path: Path) -> None:
    document, path = results.new_document("rows", []), tmp_path / "run.json"
    saved: list[int] = []

    def save() -> None:
        results.save(document, path)
        saved.append(len(json.loads(path.read_text())["cases"]))

    assert rows.COMMAND.run([SMALL, replace(SMALL, label="again")], bench_of(), document, save)
    assert saved == [0, 1, 1, 2] and results.load(path)["not_run"] == []


def test_refusals_and_listing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        rows.main(["--only", "nothing like it"])
    assert rows.main(["--list", "--groups", "planted", "e4m3"]) == 0
    text = capsys.readouterr().out
    assert "d64 causal 16k q32/kv8, planted 75%" in text and "1.488 ours dense" in text
    assert "1.9 ours twice the rows" in text and "pages of 16" not in text
    if not torch.cuda.is_available():
        assert rows.main([]) == 1 and "expected an NVIDIA GPU" in capsys.readouterr().err
