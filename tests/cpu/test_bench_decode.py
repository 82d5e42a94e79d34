"""``bench decode`` with a fake timer and CPU tensors: rows, planted inputs, calls, checks, goals and tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimattn
import torch

from bench import decode, decode_calls, decode_checks, plot, results
from bench.compare import fastest
from bench.decode_calls import Rotation
from bench.decode_inputs import Cache, cache_of, dropped, keys_of, planted_counts, records, repaged
from bench.decode_measure import COLD_BYTES, SAMPLE_MS, Bench, calls_of, copies_of, measure
from bench.decode_table import case_table, summary
from bench.decode_work import WORKS, Work
from bench.goal import Goal
from bench.names import BEST, DENSE, PAGES_OF_64, READ, THRESHOLD, skip_name, stat_name
from bench.peers import MissingError, NotRun
from bench.timing import Call
from tests.helpers.place_timer import PlaceTimer

SKIP, STAT = skip_name(THRESHOLD), stat_name(THRESHOLD)
GOALS = (Goal(DENSE, "fa3", 0.9), Goal(DENSE, BEST, 1.0), Goal(DENSE, READ, 0.9))
SMALL = Work("small", (256, 256), (1, 1), heads_q=8, heads_kv=2, head_dim=64, goals=GOALS)
PLANTED = replace(
    SMALL,
    label="small, planted 50%",
    group="planted",
    lens=(1024, 1024),
    planted=0.5,
    block=128,
    skipping=True,
    goals=(Goal(SKIP, DENSE, 1.2), Goal(STAT, SKIP, 0.98)),
)


@pytest.fixture(autouse=True)
def no_built_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an earlier build left in the checkout is not looked at."""
    monkeypatch.setenv("SKIMATTN_KERNELS", str(tmp_path))


def in_turn(calls: Sequence[Call], count: int) -> Call:
    """Stands in for a CUDA graph."""

    def replay() -> None:
        for index in range(count):
            calls[index % len(calls)]()

    return replay


def by_definition(name: str, factor: float = 1.0) -> Any:
    """A peer that computes every row in float64, on one thing or another ``factor`` wrong."""

    def make(work: Work, cache: Cache) -> list[Rotation]:
        out = torch.empty(sum(work.rows), work.heads_q, work.head_dim_v, dtype=torch.bfloat16)

        def call(copy: int) -> torch.Tensor:
            for request, rows in enumerate(work.rows):
                start = int(cache.offsets[request])
                found = decode_checks.truth(work, cache, copy, request, torch.arange(rows))
                out[start : start + rows] = factor * found
            return out

        return [Rotation(name, tuple((lambda c=c: call(c)) for c in range(len(cache.tables))), out)]

    return make


def bench_of(**makers: Any) -> Bench:
    return Bench("cpu", PlaceTimer(), 4, in_turn, makers, lambda: None, 4 << 30, cold_bytes=1, sample_ms=1e-6)


def test_rows_of_the_command() -> None:
    assert len({work.label for work in WORKS}) == len(WORKS) and len(decode.COMMAND.groups) == 6
    for work in WORKS:
        assert len(work.lens) == len(work.rows) and work.heads_q % work.heads_kv == 0
        assert all(rows <= length for rows, length in zip(work.rows, work.lens, strict=True))
        pool = work.bytes * copies_of(work, COLD_BYTES) * (2 if work.pages_of_64 else 1)
        assert pool * (max(work.lens) / work.window if work.window else 1) < 40e9
        assert work.goals, f"{work.label}: what must be reached?"
        for goal in work.goals:
            assert goal.of == DENSE or goal.of in {f(t) for t in work.thresholds for f in (skip_name, stat_name)}
    assert WORKS[0].bytes == 2 * 64 * 16384 * 4 * 128 * 2
    assert next(work for work in WORKS if work.window).bytes == 2 * 16 * 4096 * 4 * 128 * 2
    assert next(work for work in WORKS if work.layout == "latent").bytes == 32 * 8192 * 576 * 2


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.label)
def test_calls_leave_nothing_in_l2_and_are_not_too_many(work: Work) -> None:
    copies = copies_of(work, COLD_BYTES)
    read = work.bytes * (1 - (work.planted or 0) / 2)
    assert read * copies >= COLD_BYTES and (copies == 1 or read * (copies - 1) < COLD_BYTES)
    assert calls_of(work, copies, SAMPLE_MS) % copies == 0 and calls_of(work, copies, SAMPLE_MS) <= 500


def test_pages_lie_in_no_order_and_belong_to_one_copy_each() -> None:
    work = replace(SMALL, lens=(100, 256, 1), rows=(1, 3, 1), page=16)
    cache = cache_of(work, 2, "cpu")
    used = [table[request, : -(-length // 16)] for table in cache.tables for request, length in enumerate(work.lens)]
    pages = torch.cat(used).tolist()
    assert sorted(pages) == list(range(2 * (7 + 16 + 1))) and pages != sorted(pages)
    assert not cache.tables[0][0, 7:].any() and len(cache.k) == len(pages)
    assert cache.offsets.tolist() == [0, 1, 4, 5] and cache.q.shape == (5, 8, 64)
    other = repaged(cache, work, 64)
    for copy in range(2):
        for request in range(3):
            old, new = keys_of(cache, work, copy, request), keys_of(other, replace(work, page=64), copy, request)
            assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True))


@pytest.mark.parametrize(("layout", "dim"), [("joined", 64), ("latent", 576)])
def test_layouts_share_their_memory(layout: str, dim: int) -> None:
    cache = cache_of(replace(SMALL, layout=layout, head_dim=dim, heads_kv=1), 1, "cpu")
    assert cache.k.untyped_storage().data_ptr() == cache.v.untyped_storage().data_ptr()
    assert cache.v.shape == (8, 64, 1, 64 if layout == "joined" else 512) and cache.k.float().std() > 0.9
    if layout == "joined":
        assert cache.k.transpose(1, 2).stride() == (64 * 128, 64 * 128, 128, 1)
        assert not torch.equal(cache.k, cache.v)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8, 0.93, 1.0])
def test_the_planted_share_is_met_by_every_head_of_every_request(share: float) -> None:
    work = replace(PLANTED, lens=(64 * 100,) * 2, block=64, planted=share)
    drop = dropped(work, 2, torch.Generator().manual_seed(0))
    assert drop.shape == (2, 2, 2, 100) and not drop[..., 0].any()
    assert (drop.sum(-1) == min(round(share * 100), 99)).all()
    if 0 < share < 1:
        assert len({tuple(row) for row in drop.flatten(0, 2).tolist()}) == 8, "heads and requests should differ"
    with pytest.raises(ValueError, match="multiples of 64"):
        dropped(replace(work, lens=(100, 100)), 1, torch.Generator())


@pytest.mark.parametrize("start", ["tile 0", "nothing"])
@pytest.mark.parametrize("latent", [False, True])
def test_every_row_agrees_on_every_planted_tile(start: str, latent: bool) -> None:
    """Own walk over tiles of the planted width: all heads of a group, whichever tile the walk starts at."""
    work = replace(PLANTED, block=64, heads_q=32)
    if latent:
        work = replace(work, layout="latent", heads_kv=1, head_dim=576)
    cache = cache_of(work, 1, "cpu")
    assert cache.drop is not None
    for request in range(work.batch):
        k, _ = keys_of(cache, work, 0, request)
        for head in range(work.heads_kv):
            group = work.heads_q // work.heads_kv
            q = cache.q[request, head * group : (head + 1) * group].double()
            scores = (q @ k[:, head].double().t() * work.head_dim**-0.5).view(group, -1, 64)
            low = scores.amax(-1) - scores[:, :1].amax(-1) < np.log(THRESHOLD)
            if start == "nothing":  # as a split starts that has no start value: its first kept tile is the measure
                kept = int((~cache.drop[0, request, head]).nonzero()[-1])
                low = scores.amax(-1) - scores[:, kept : kept + 1].amax(-1) < np.log(THRESHOLD)
            assert torch.equal(low, cache.drop[0, request, head].expand(group, -1))


def test_planted_counts() -> None:
    drop = torch.tensor([[[False, True, True, True], [False, True, False, True]]])[None]
    work = replace(PLANTED, lens=(256,), rows=(1,), block=64)
    cache = replace(cache_of(replace(SMALL, lens=(256,), rows=(1,)), 1, "cpu"), drop=drop[0])
    assert planted_counts(work, cache, 64, True, 64) == (8 * 4, 4 * (3 + 2))
    assert planted_counts(work, cache, 128, True, 64) == (8 * 2, 4 * 1)
    assert planted_counts(work, replace(cache, drop=None), 64, False, 64) == (8 * 4, 0)
    assert records(replace(work, rows=(2,), heads_q=128, heads_kv=1), 64, True, 64) == 2 * 128 * 4
    assert records(replace(work, rows=(3,)), 64, True, 64) == 8 * 4, "12 packed rows are one group"
    assert records(replace(work, rows=(65,)), 64, False, 64) == 2 * 8 * 4


def test_a_planted_row_is_counted_by_the_stat_kernel() -> None:
    case = measure(PLANTED, bench_of(fa3=by_definition("fa3")))
    assert [row["name"] for row in case["rows"]] == [DENSE, SKIP, STAT, "fa3"]
    assert case["counts"] == {"visited": 128, "skipped": 64, "sparsity": 0.5}
    assert all(item["passed"] for item in case["checks"]), case["checks"]
    assert {item["of"] for item in case["checks"]} == {DENSE, SKIP, STAT, "fa3"}
    assert [goal["over"] for goal in case["goals"]] == [DENSE, SKIP]
    lines = plot.speedups({"kind": "decode", "cases": [case]})
    assert set(lines) == {"skimattn small", "best peer small"} and lines["skimattn small"][0][0] == 0.5


@pytest.mark.parametrize(
    "changes",
    [
        {"lens": (200, 130), "rows": (3, 3)},
        {"lens": (90, 200), "rows": (1, 70)},
        {"window": 100, "lens": (256, 40)},
        {"layout": "joined"},
        {"page": 16, "pages_of_64": True, "lens": (256, 100)},
        {"heads_q": 4, "heads_kv": 4},
    ],
    ids=str,
)
def test_rows_of_every_form_run_and_are_right(changes: dict[str, Any]) -> None:
    work = replace(SMALL, **changes)
    bench = bench_of(fa3=by_definition("fa3"))
    bench.cold_bytes = work.bytes + 1
    case = measure(work, bench)
    names = [DENSE, PAGES_OF_64, "fa3"] if work.pages_of_64 else [DENSE, "fa3"]
    assert [row["name"] for row in case["rows"]] == names and bench.not_run == [] and case["copies"] == 2
    assert all(item["passed"] for item in case["checks"]), case["checks"]


@pytest.mark.parametrize("changes", [{"cache": "e4m3"}, {"layout": "latent", "head_dim": 576, "heads_kv": 1}], ids=str)
def test_what_we_cannot_do_yet_is_said_and_peers_are_timed(changes: dict[str, Any]) -> None:
    """Once there are kernels for it the row runs; until then it is reported."""
    bench = bench_of(fa3=by_definition("fa3"))
    case = measure(replace(SMALL, **changes), bench)
    assert all(item["passed"] for item in case["checks"]), case["checks"]
    if [row["name"] for row in case["rows"]] == ["fa3"]:
        assert bench.not_run[0].peer == DENSE and [goal["value"] for goal in case["goals"]] == [None] * 3
        assert "not run" in case_table(case) and "0 of 3 goals reached" in summary([case])


@pytest.mark.parametrize(("factor", "stale"), [(1.05, False), (float("nan"), False), (1.0, True)])
def test_what_is_wrong_does_not_pass(factor: float, stale: bool) -> None:
    """Wrong values, values that are missing, and a peer whose later calls in a replay do nothing."""
    make = by_definition("fa3", factor)

    def lazy(work: Work, cache: Cache) -> list[Rotation]:
        [item] = make(work, cache)
        calls = iter([True, True])
        return [replace(item, calls=tuple(lambda c=c: c() if next(calls, False) else item.out for c in item.calls))]

    case = measure(SMALL, bench_of(fa3=lazy if stale else make))
    assert {item["of"] for item in case["checks"] if not item["passed"]} == {"fa3"}
    assert "FAILED: fa3" in case_table(case)


def test_goals_and_tables() -> None:
    case = measure(SMALL, bench_of(fa3=by_definition("fa3"), xqa=by_definition("xqa")))
    text, total = case_table(case), summary([case])
    assert "plain read" in text and "goal: ours dense over fa3" in text and "of 3 goals reached" in total
    assert [goal["wanted"] for goal in case["goals"]] == ["fa3", BEST, READ]
    times = {"fa3": [2.0], "fa3 graph": [1.0], "xqa": [0.5], DENSE: [0.1], READ: [0.01]}
    assert (fastest(times, "fa3"), fastest(times, BEST), fastest(times, "flashmla")) == ("fa3 graph", "xqa", None)


def test_the_nearer_of_two_goals_counts() -> None:
    either = Goal(DENSE, "xqa", 1.0, instead=Goal(DENSE, READ, 1e-9))
    [goal] = measure(replace(SMALL, goals=(either,)), bench_of())["goals"]
    assert goal["over"] == READ and goal["passed"] and goal["wanted"] == "xqa"


def test_a_peer_that_refuses_does_not_end_the_run() -> None:
    def refuses(work: Work, cache: Cache) -> list[Rotation]:
        raise MissingError("no such shape")

    def fails(work: Work, cache: Cache) -> list[Rotation]:
        return [Rotation("xqa", (lambda: cache.q.view(7),), cache.q)]

    bench = bench_of(fa3=refuses, xqa=fails)
    assert [row["name"] for row in measure(SMALL, bench)["rows"]] == [DENSE]
    assert bench.not_run[0] == NotRun("fa3", "small", "no such shape") and bench.not_run[1].peer == "xqa"


def test_a_run_is_saved_after_every_row(tmp_path: Path) -> None:
    document, path = results.new_document("decode", []), tmp_path / "run.json"
    saved: list[int] = []

    def save() -> None:
        results.save(document, path)
        saved.append(len(json.loads(path.read_text())["cases"]))

    assert decode.COMMAND.run([SMALL, replace(SMALL, label="again")], bench_of(), document, save)
    assert saved == [0, 1, 1, 2] and results.load(path)["not_run"] == []


def test_calls_are_what_an_engine_would_write() -> None:
    work = replace(SMALL, rows=(1, 1), window=64, cache="e4m3")
    params = decode_calls.call_of(work, cache_of(work, 1, "cpu"), 0, torch.empty(2, 8, 64, dtype=torch.bfloat16))
    assert params.q.shape == (2, 1, 8, 64) and params.cu_seqlens_q is None and params.max_seqlen_k == 256
    assert params.window_size == (63, 0) and params.k_descale is not None and params.q_descale is None
    mixed = replace(SMALL, rows=(1, 5))
    params = decode_calls.call_of(mixed, cache_of(mixed, 1, "cpu"), 0, torch.empty(6, 8, 64, dtype=torch.bfloat16))
    assert params.q.shape == (6, 8, 64) and params.max_seqlen_q == 5
    assert skimattn.explain(params).accepted


def test_peers_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FA3_LIBRARY", raising=False)
    monkeypatch.delenv("FLASHMLA_LIBRARY", raising=False)
    makers, missing = decode_calls.load(["fa3", "flashmla"])
    assert makers == {} and [item.peer for item in missing] == ["fa3", "flashmla"]
    assert "FA3_LIBRARY" in missing[0].reason


def test_refusals_and_listing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        decode.main(["--only", "nothing like it"])
    assert decode.main(["--list", "--groups", "planted"]) == 0
    assert "b64 64k, planted 80%" in capsys.readouterr().out
    if not torch.cuda.is_available():
        assert decode.main([]) == 1 and "expected an NVIDIA GPU" in capsys.readouterr().err
