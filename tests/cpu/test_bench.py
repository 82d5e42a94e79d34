"""Benchmarks: timing order, statistics, inputs, checks and whole cases, with fake timers and CPU tensors."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import skimattn
import torch
from skimattn._launch.prepared import MAX_PREPARED

from bench import cases, checks, host_decode, host_shapes, inputs, peers, prefill, results, table, timing
from bench.cases import Case, Session
from bench.contender import Contender, call_of
from bench.names import DENSE, SKIP_NOTHING
from bench.shape import Shape

SMALL = Shape(768, "causal", heads_q=2, heads_kv=1, head_dim=64)


@pytest.fixture(autouse=True)
def no_built_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an earlier build left in the checkout is not looked at."""
    monkeypatch.setenv("SKIMATTN_KERNELS", str(tmp_path))


class FakeTimer:
    """Runs the calls and says that they took what ``times`` tells, in the order of the calls."""

    def __init__(self, times: Callable[[int], float] = lambda index: 1.0 + index) -> None:
        self.orders: list[list[object]] = []
        self.times = times

    def round(self, calls: Sequence[timing.Call]) -> list[float]:
        self.orders.append([call() for call in calls])
        return [self.times(index) for index in range(len(calls))]


def test_summary_of_known_samples() -> None:
    summary = timing.Summary.of([5.0, 1.0, 4.0, 2.0, 3.0])
    assert summary == timing.Summary(n=5, median=3.0, min=1.0, max=5.0, p10=pytest.approx(1.4), p90=pytest.approx(4.6))
    assert timing.Summary.of([7.0]) == timing.Summary(1, 7.0, 7.0, 7.0, 7.0, 7.0)
    with pytest.raises(ValueError, match="got none"):
        timing.Summary.of([])


def test_speeds_are_ratios_inside_a_round() -> None:
    """A machine that slows down by half way through the run changes both sides and no ratio."""
    speed = timing.speed_over([1.0, 1.0, 2.0, 2.0], [1.5, 1.5, 3.0, 3.0])
    assert (speed.min, speed.median, speed.max, speed.n) == (1.5, 1.5, 1.5, 4)
    with pytest.raises(ValueError):
        timing.speed_over([1.0], [1.0, 2.0])


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.75, 0.9])
def test_the_planted_share_is_met_in_every_part_of_the_sequence(sparsity: float) -> None:
    generator = torch.Generator().manual_seed(0)
    drop = inputs.drawn_blocks(lambda *size: torch.randn(size, generator=generator), 8, 64, sparsity)
    assert not drop[:, 0].any()
    for end in range(inputs.STRATUM, 65, inputs.STRATUM):
        assert (drop[:, :end].sum(1) == round(sparsity * end)).all()
    if sparsity > 0:
        assert len({tuple(row.tolist()) for row in drop}) == 8, "heads should differ"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_everyone_takes_every_place_and_follows_more_than_one_neighbour(count: int) -> None:
    names = [str(index) for index in range(count)]
    orders = [timing.round_order(names, index) for index in range(2 * count)]
    assert all(sorted(order) == names for order in orders)
    for place in range(count):
        assert {order[place] for order in orders} == set(names)
    if count > 2:
        before = {name: {a for order in orders for a, b in itertools.pairwise(order) if b == name} for name in names}
        assert all(len(neighbours) > 1 for neighbours in before.values())


def test_interleaved_rounds_keep_samples_with_their_names() -> None:
    timer = FakeTimer()
    times = timing.interleave({name: lambda name=name: name for name in "abc"}, 4, timer, warmup=2)
    assert timer.orders == [list(order) for order in ("cab", "bac", "abc", "cba", "bca", "acb")]
    assert times == {"a": [1.0, 3.0, 3.0, 1.0], "b": [2.0, 2.0, 1.0, 3.0], "c": [3.0, 1.0, 2.0, 2.0]}


def test_host_timer_counts_launches_between_two_waits() -> None:
    log: list[str] = []
    clock = iter([10.0, 10.001, 20.0, 20.004])
    timer = timing.HostTimer(lambda: log.append("wait"), launches=2, clock=lambda: next(clock))
    assert timer.round([lambda: log.append("a"), lambda: log.append("b")]) == pytest.approx([500.0, 2000.0])
    assert log == ["wait", "a", "a", "wait", "wait", "b", "b", "wait"]


def test_flops_follow_the_convention() -> None:
    assert Shape(16384, "full").flops == 4 * 16384**2 * 128 * 64 == 2 * Shape(16384, "causal").flops
    assert Shape(8, "causal", 6, 2, 64, "fp16", batch=3).flops == 2 * 3 * 6 * 8 * 8 * 64
    for wrong in ({"mask": "window"}, {"dtype": "fp8"}, {"heads_kv": 3}):
        with pytest.raises(ValueError, match="expected"):
            replace(Shape(8, "full"), **wrong)  # type: ignore[arg-type]


def counted_by_hand(drop: np.ndarray, shape: Shape, tile_n: int, group_rows: int) -> tuple[int, int]:
    """Row by row and key by key: every row agrees if all that it sees in the tile was dropped."""
    visited = skipped = 0
    dropped_keys = np.repeat(drop, inputs.BLOCK, axis=1)
    for head in range(shape.heads_q):
        keys = dropped_keys[head * shape.heads_kv // shape.heads_q]
        for start in range(0, shape.seqlen, group_rows):
            rows = range(start, min(start + group_rows, shape.seqlen))
            for first in range(0, shape.seqlen, tile_n):
                tile = range(first, min(first + tile_n, shape.seqlen))
                seen = [[key for key in tile if key <= row or shape.mask == "full"] for row in rows]
                visited += any(seen)
                skipped += any(seen) and all(keys[key] for row in seen for key in row)
    return shape.batch * visited, shape.batch * skipped


@pytest.mark.parametrize("mask", ["causal", "full"])
@pytest.mark.parametrize(("tile_n", "group_rows"), [(128, 64), (64, 64), (176, 64), (256, 128)])
def test_planted_counts_against_counting_by_hand(mask: str, tile_n: int, group_rows: int) -> None:
    shape = Shape(1024, mask, heads_q=4, heads_kv=2, head_dim=8)
    made = inputs.planted(shape, 0.5, "cpu", seed=3)
    assert 0 < made.drop.sum() < made.drop.size and not made.drop[:, 0].any()
    expected = counted_by_hand(made.drop, shape, tile_n, group_rows)
    assert inputs.tile_counts(made, shape, tile_n, group_rows) == expected
    assert 0 < expected[1] < expected[0]


@pytest.mark.parametrize("mask", ["causal", "full"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "e4m3"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_planted_inputs_skip_as_planted_at_any_sound_threshold(mask: str, dtype: str, head_dim: int) -> None:
    shape = Shape(768, mask, heads_q=2, heads_kv=1, head_dim=head_dim, dtype=dtype)
    made = inputs.planted(shape, 0.6, "cpu", seed=1)
    dense = skimattn.attention(made.q, made.k, made.v, mask=mask)
    for threshold in (1e-9, 1e-3, 1.0 - 1e-3):
        stats = torch.zeros(2, dtype=torch.int64)
        out = skimattn.attention(made.q, made.k, made.v, mask=mask, skip_softmax_threshold=threshold, stats=stats)
        if threshold < 0.5:  # next to 1, tiles that only fail to raise the maximum go as well
            assert tuple(stats.tolist()) == inputs.tile_counts(made, shape, tile_n=128, group_rows=64)
            assert checks.relative_error(out, dense) < checks.SKIPPING  # type: ignore[arg-type]
    assert stats[1] > 0


def test_inputs_are_reproducible_and_never_zero() -> None:
    for make in (inputs.normal, lambda *rest: inputs.planted(SMALL, 0.5, *rest[1:])):
        first, again = make(SMALL, "cpu"), make(SMALL, "cpu")
        for one, other in zip((first.q, first.k, first.v), (again.q, again.k, again.v), strict=True):
            assert torch.equal(one, other) and one.float().std() > 0.5
    assert not inputs.normal(SMALL, "cpu").drop.any()
    assert inputs.tile_counts(inputs.normal(SMALL, "cpu"), SMALL, 128, 64) == (42 * 2, 0)
    with pytest.raises(ValueError, match="multiple of 256"):
        inputs.planted(replace(SMALL, seqlen=700), 0.5, "cpu")
    with pytest.raises(ValueError, match="sparsity"):
        inputs.planted(SMALL, 1.5, "cpu")


@pytest.mark.parametrize("mask", ["causal", "full"])
def test_truth_is_attention(mask: str) -> None:
    shape = replace(SMALL, mask=mask)
    made = inputs.normal(shape, "cpu")
    q, k, v = (x.double().transpose(1, 2) for x in (made.q, made.k, made.v))
    whole = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=shape.causal, enable_gqa=True)
    rows = checks.sampled_rows(shape.seqlen)
    assert rows[0] == 0 and rows[-1] == shape.seqlen - 1 and len(rows) >= 12
    assert torch.allclose(checks.truth(made, shape), whole.transpose(1, 2)[:, rows])


def test_what_8_bits_round_off_is_accepted_and_not_much_more() -> None:
    shape = replace(SMALL, dtype="e4m3")
    made = inputs.normal(shape, "cpu")
    params = call_of(made, shape)
    out = params.out
    assert out is not None and out.dtype == torch.bfloat16
    skimattn.launch(params)

    def beside_truth(out: torch.Tensor) -> checks.Check:
        found = checks.check_outputs({DENSE: out}, made, shape)
        return next(check for check in found if "float64" in check.against)

    assert beside_truth(out).passed and beside_truth(out).value > 2e-3
    assert not beside_truth(out * 1.06).passed


@pytest.mark.parametrize("damage", ["nan", "row", "scale", "bit"])
def test_a_wrong_output_fails_its_check(damage: str) -> None:
    made = inputs.normal(SMALL, "cpu")
    dense = skimattn.attention(made.q, made.k, made.v, mask="causal")
    assert isinstance(dense, torch.Tensor)
    wrong = dense.clone()
    if damage == "nan":
        wrong[0, 300, 1, 5] = float("nan")
    elif damage == "row":
        wrong[0, 767] = 0
    elif damage == "scale":
        wrong *= 1.02
    else:
        wrong.view(torch.int16)[0, 300, 1, 5] ^= 1
    name = "ours skip@0" if damage == "bit" else "peer"
    assert all(item.passed for item in checks.check_outputs({DENSE: dense, name: dense.clone()}, made, SMALL))
    found = checks.check_outputs({DENSE: dense, name: wrong}, made, SMALL)
    assert [item.of for item in found if not item.passed][:1] == [name]


def test_counts_must_be_exact() -> None:
    assert all(item.passed for item in checks.check_counts("x", (10, 3), (10, 3)))
    for wrong in ((9, 3), (11, 3), (10, 2), (10, 4)):
        assert sum(not item.passed for item in checks.check_counts("x", wrong, (10, 3))) == 1


def session(makers: dict[str, peers.Maker] | None = None) -> Session:
    return Session(
        "cpu",
        FakeTimer(lambda index: 0.01 + 0.01 * index),
        lambda seqlen: 3,
        makers or {},
        lambda call, ms: {"sm_clock_mhz": 1980.0},
    )


def torch_peer(name: str, scale: float = 1.0) -> peers.Maker:
    def make(given: inputs.Inputs, shape: Shape, threshold: float | None) -> list[Contender]:
        q, k, v = (x.transpose(1, 2) for x in (given.q, given.k, given.v))
        attend = torch.nn.functional.scaled_dot_product_attention
        return [
            Contender(name, lambda: scale * attend(q, k, v, is_causal=shape.causal, enable_gqa=True).transpose(1, 2))
        ]

    return make


@pytest.mark.parametrize(("sparsity", "thresholds"), [(None, SKIP_NOTHING), (0.5, (1e-3,)), (None, ())])
def test_a_whole_case(sparsity: float | None, thresholds: tuple[float, ...]) -> None:
    running = session({"cudnn": torch_peer("cudnn")})
    measured = cases.run_case(Case(SMALL, sparsity, thresholds), running)
    assert json.loads(json.dumps(measured)) == {**measured, "kernels": json.loads(json.dumps(measured["kernels"]))}
    names = [row["name"] for row in measured["rows"]]
    skips = [f"ours skip@{value:g}" for value in thresholds]
    stats = [f"ours stat@{value:g}" for value in thresholds[-1:]]
    assert names == [DENSE, *skips, *stats, "cudnn"]
    assert all(check["passed"] for check in measured["checks"]) and not running.not_run
    assert all(row["ms"]["n"] == 3 and row["tflops"] > 0 for row in measured["rows"])
    pairs = {(item["of"], item["over"]) for item in measured["comparisons"]}
    assert (DENSE, "cudnn") in pairs and all((name, DENSE) in pairs for name in skips + stats)
    assert all((stat, skips[-1]) in pairs for stat in stats)
    if thresholds:
        assert measured["counts"]["visited"] == 84 and (measured["counts"]["skipped"] > 0) == (sparsity is not None)
        assert measured["kernels"][stats[0]]["order"] == "sink_first"
    assert "cudnn" in table.case_table(measured) and "FAILED" not in table.case_table(measured)


def test_peers_that_fail_are_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    def refuses(given: inputs.Inputs, shape: Shape, threshold: float | None) -> list[Contender]:
        raise RuntimeError("not this\n  shape")

    def breaks(given: inputs.Inputs, shape: Shape, threshold: float | None) -> list[Contender]:
        return [Contender("breaks", lambda: torch.empty(-1))]

    makers = {"refuses": refuses, "breaks": breaks, "wrong": torch_peer("wrong", 1.1), "cudnn": torch_peer("cudnn")}
    running = session(makers)
    document = results.new_document("prefill", ["--repeats", "3"])
    assert not prefill.measure([Case(SMALL, None, ())], running, document, tmp_path / "x.json")
    assert [(item["peer"], item["case"]) for item in document["not_run"]] == [
        ("refuses", "768 causal bf16 q2/kv1/d64, N(0,1)"),
        ("breaks", "768 causal bf16 q2/kv1/d64, N(0,1)"),
    ]
    assert document["not_run"][0]["reason"] == "RuntimeError('not this\\n shape')"
    assert [row["name"] for row in document["cases"][0]["rows"]] == [DENSE, "wrong", "cudnn"]
    assert {check["of"] for check in document["cases"][0]["checks"] if not check["passed"]} == {"wrong"}
    text = table.not_run_table(document["not_run"])
    assert text.count("NOT RUN") == 2 and "refuses" in text
    assert "FAILED: wrong" in table.case_table(document["cases"][0])


def test_our_own_failure_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(skimattn, "launch", fail)
    with pytest.raises(RuntimeError, match="ours"):
        cases.run_case(Case(SMALL, None, ()), session())


def test_missing_peers_carry_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FA3_LIBRARY", raising=False)
    makers, missing = peers.load(["fa4", "fa3", "fmha_v2"])
    reasons = {item.peer: item.reason for item in missing}
    assert {*makers, *reasons} == {"cudnn", "fa4", "fa3", "fmha_v2"}  # cuDNN is always asked for
    assert "FA3_LIBRARY" in reasons["fa3"] and "flash_attn" in reasons["fa4"] and "flashinfer" in reasons["fmha_v2"]
    monkeypatch.setenv("FA3_LIBRARY", "/nowhere.so")
    assert "nowhere" in peers.load(["fa3"])[1][-1].reason


def test_options_become_cases() -> None:
    options = prefill.parser().parse_args(["--seqlens", "16384", "65536", "--masks", "causal"])
    chosen = prefill.cases_of(options)
    assert [(case.shape.seqlen, case.sparsity) for case in chosen] == [
        (seqlen, sparsity) for seqlen in (16384, 65536) for sparsity in (None, 0.0, 0.5, 0.75, 0.9)
    ]
    assert [prefill.repeats_at(options, seqlen) for seqlen in (4096, 16384, 65536)] == [20, 20, 8]
    dense = prefill.cases_of(prefill.parser().parse_args(["--no-skip"]))
    assert [(case.sparsity, case.thresholds) for case in dense] == [(None, ())] * 4
    assert all(case.sparsity is not None for case in prefill.cases_of(prefill.parser().parse_args(["--no-dense"])))
    for wrong in (["--no-dense", "--no-skip"], ["--seqlens", "1000"], ["--heads-kv", "3"]):
        with pytest.raises(SystemExit):
            prefill.main(wrong)


def test_host_decode_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[object, ...]] = []

    def record(params: skimattn.Params) -> None:
        assert params.page_table is not None and params.seqused_k is not None
        seen.append((len(params.q), tuple(params.page_table.shape), params.max_seqlen_k))
        plain(params)

    plain = skimattn.launch
    monkeypatch.delenv("FA3_LIBRARY", raising=False)
    monkeypatch.setattr(host_decode.skimattn, "launch", record)
    for name, call in host_decode.decode_rows("cpu", 9).items():
        seen.clear()
        for _ in range(11):
            call()
        assert len(set(seen)) == (9 if "new batch" in name or "new lengths" in name else 1) and seen[9:] == seen[:2]
        assert all(batch == table[0] and table[1] * 16 == longest for batch, table, longest in seen)


def test_host_decode_rows_beside_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told the same sizes."""
    seen: list[tuple[Any, ...]] = []

    def fwd(*given: Any) -> list[Any]:
        seen.append((given[0].shape, given[7].shape, given[11].shape, given[12], given[13], given[14].shape))
        assert len(given) == 37
        return [given[0]]

    operators = SimpleNamespace(load_library=lambda _path: None, _vllm_fa3_C=SimpleNamespace(fwd=fwd))
    monkeypatch.setenv("FA3_LIBRARY", "there")
    monkeypatch.setattr(host_decode.torch, "ops", operators)
    rows = host_decode.decode_rows("cpu", 9)
    theirs = {name: call for name, call in rows.items() if name.startswith("fa3")}
    assert len(theirs) == 3 and len(rows) == 7
    for call in theirs.values():
        for _ in range(3):
            call()
    heads = (4, 128)
    assert seen[:3] == [((8, *heads), (9,), (8,), 1, 1024, (8, 64))] * 3
    assert seen[4] == ((2, *heads), (3,), (2,), 1, 1024, (2, 64))
    assert seen[8] == ((8, *heads), (9,), (8,), 1, 1056, (8, 66))


def test_host_shapes_are_never_the_same_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[object, ...]] = []

    def record(params: skimattn.Params) -> None:
        seen.append((tuple(params.q.shape), params.skip_softmax_threshold))

    monkeypatch.delenv("FA3_LIBRARY", raising=False)
    monkeypatch.setattr(host_shapes.skimattn, "launch", record)
    rows = host_shapes.new_shapes("cpu", 5)
    assert len(rows) == 4 and host_shapes.COUNT > MAX_PREPARED
    for call in rows.values():
        seen.clear()
        for _ in range(7):
            call()
        assert len(set(seen)) == 5 and seen[5:] == seen[:2]
