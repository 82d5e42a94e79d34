"""``bench skip`` with a fake timer and CPU tensors: rows, planted curves, both passes, checks, report and files."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimattn
import torch

from bench import graded, plot, qkv_file, results, skip, skip_calls, skip_reference, skip_report
from bench.host_shapes import in_turn
from bench.names import DENSE, skip_name, stat_name
from bench.skip_calls import Bench, Prefill, subject_of
from bench.skip_measure import measure
from bench.skip_work import DECODE, PREFILL, WAN, WORKS, Work, real_rows
from bench.timing import Call, Repeated
from tests.helpers.place_timer import PlaceTimer

FACTORS = {0.25: 2.0, 0.5: 20.0, 0.75: 200.0}


@pytest.fixture(autouse=True)
def no_built_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an earlier build left in the checkout is not looked at."""
    monkeypatch.setenv("SKIMATTN_KERNELS", str(tmp_path))


def replayed(calls: Sequence[Call], count: int) -> Call:
    """Stands in for a CUDA graph."""
    return Repeated(in_turn(calls), count)


def bench_of() -> Bench:
    def state(call: Call, ms: float) -> dict[str, object]:
        return {"sm_clock_mhz": 1000.0 * ms}

    return Bench("cpu", PlaceTimer(), 3, {}, under_load=state, pack=replayed, cold_bytes=1 << 20, sample_ms=0.01)


def small(label: str, factors: Mapping[float, float] = FACTORS) -> Work:
    """The row of this name, small enough for the reference, at a few thresholds."""
    work = next(work for work in WORKS if work.label == label)
    batch = min(2, work.call.batch)
    rows = 1 if work.group == "decode" else 1024
    call = replace(work.call, lens=(1024,) * batch, rows=(rows,) * batch, heads_q=2 if rows == 1 else 1, heads_kv=1)
    return replace(work, call=call, factors=factors)


@cache
def measured(label: str) -> dict[str, Any]:
    """Such a row, measured, where nothing failed; not to be changed."""
    bench = bench_of()
    case = measure(small(label), bench)
    assert bench.not_run == []
    return case


PLANTED, STEP = "prefill b1 16k bf16, planted", "decode b64 16k bf16, planted"


def test_rows_are_those_of_the_issue() -> None:
    assert len({work.label for work in WORKS}) == len(WORKS) == 24
    shapes = {(work.group, work.call.lens[0], work.call.batch, work.call.heads_q, work.call.heads_kv) for work in WORKS}
    llm = {("prefill", n, 1, 64, 4) for n in (16384, 65536)} | {("decode", n, 64, 64, 4) for n in (16384, 65536)}
    assert shapes == llm | {("wan", n, 1, 24, 24) for n in (16384, 32768, 40960, 65536)}
    for work in WORKS:
        assert work.call.head_dim == work.call.head_dim_v == 128 and work.call.planted is None
        assert getattr(work.call, "mask", "causal") == ("full" if work.group == "wan" else "causal")
    kinds = {(work.group, work.label.split(",")[0].split()[-1], work.inputs) for work in WORKS}
    dtypes = [*((group, dtype) for group in ("prefill", "decode") for dtype in ("bf16", "e4m3")), ("wan", "bf16")]
    assert kinds == {(*pair, inputs) for pair in dtypes for inputs in ("planted", "random")}


def test_factors_and_thresholds() -> None:
    """The published ones are a * exp(b * share) as published; those of Wan are evenly spaced over the logarithm."""
    for table, a, b in ((PREFILL, 7.93, 8.61), (DECODE, 0.12, 9.85)):
        assert [*table] == [pytest.approx(tenth / 10) for tenth in range(1, 10)]
        assert [*table.values()] == pytest.approx([a * math.exp(b * share) for share in table], rel=0.05)
    steps = np.diff(np.log([*WAN.values()]))
    assert steps == pytest.approx(steps[0]) and max(WAN) == 0.99
    rows = {work.label: work for work in WORKS}
    assert rows["prefill b1 64k bf16, random"].points[4].threshold == 587.18 / 65536
    assert rows["decode b64 16k e4m3, planted"].points[8].threshold == 852.20 / 16384
    short = rows["prefill b1 16k bf16, planted"]
    assert short.left_out == (18471.56,) and len(short.points) == 8 and short.points[-1].share == 0.8
    assert all(point.threshold < 1 for work in WORKS for point in work.points)
    assert rows["Wan2.2 65k bf16, planted"].left_out == ()


@pytest.mark.parametrize(
    "label",
    [
        PLANTED,
        "prefill b1 64k e4m3, planted",
        "prefill b1 16k bf16, random",
        "Wan2.2 41k bf16, planted",
        STEP,
        "decode b64 64k e4m3, random",
    ],
)
def test_a_row_is_counted_timed_and_checked(label: str) -> None:
    work, case = small(label), measured(label)
    assert all(check["passed"] for check in case["checks"]), case["checks"]
    names = {check["of"] for check in case["checks"]}
    assert names == {"ours", DENSE} | {f(p.threshold) for p in work.points for f in (skip_name, stat_name)}
    assert sum("reference" in check["against"] for check in case["checks"]) == 4
    if work.inputs == "planted":
        wanted = [0.25, 0.5, 0.75]
        assert [point["sparsity"] for point in case["points"]] == pytest.approx(wanted, abs=0.17)
        changed = [point["changed"] for point in case["points"]]
        assert 0 < changed[0] < changed[1] < changed[2] < 1
    for point in case["points"]:
        assert point["allowed"] == pytest.approx(1 / (1 - point["sparsity"] / 2), abs=1e-3)
    assert case["dense"]["n"] == 3 and case["points"][2]["speed"]["n"] == 3
    assert case["kernels"][stat_name(work.points[0].threshold)]["kernel"].count("_stat") == 1
    assert case["kernels"][skip_name(work.points[0].threshold)]["kernel"].count("_skip") == 1


def test_times_are_those_of_one_call() -> None:
    """The timer says place n took n ms, of samples in which the row is computed several times."""
    case = measured(PLANTED)
    _, often = subject_of(small(PLANTED), bench_of()).packed([object()])  # type: ignore[list-item]
    assert often == 10 and case["dense"]["min"] == 0.1 and case["points"][0]["ms"]["max"] <= 0.4
    assert case["under_load"]["sm_clock_mhz"] == pytest.approx(1e4 * case["dense"]["median"])


def test_a_count_that_was_not_planted_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graded, "depths", lambda thresholds: [1.0 for _ in thresholds])  # all as the last one has it
    case = measure(small(PLANTED), bench_of())
    failed = {check["against"] for check in case["checks"] if not check["passed"]}
    assert failed == {"skipped tiles too many or few"} and "FAILED: ours stat@" in skip_report.case_table(case)


@pytest.mark.parametrize("label", [PLANTED, STEP])
def test_an_output_unlike_the_reference_does_not_pass(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = skip_reference._moved

    def other(tensors: Any) -> Any:
        moved = real(tensors)
        return replace(moved, v=moved.v * 1.05)

    monkeypatch.setattr(skip_reference, "_moved", other)
    case = measure(small(label), bench_of())
    threshold = small(label).points[-1].threshold
    failed = {(check["of"], check["against"]) for check in case["checks"] if not check["passed"]}
    assert failed == {(name, "reference at reduced size") for name in (DENSE, skip_name(threshold))}


def test_what_fails_is_named_and_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    work, bench = small(PLANTED), bench_of()
    bad, real = work.points[1].threshold, skip_calls.prefill_calls.call_of

    def call_of(call: Any, data: Any, threshold: float | None, count: bool) -> skimattn.Params:
        if threshold == bad:
            raise RuntimeError("no such kernel")
        return real(call, data, threshold, count)

    monkeypatch.setattr(skip_calls.prefill_calls, "call_of", call_of)
    case = measure(work, bench)
    assert [item.peer for item in bench.not_run] == [stat_name(bad), skip_name(bad)]
    assert [point["ms"] is None for point in case["points"]] == [False, True, False]
    failed = {check["against"]: check["value"] for check in case["checks"] if not check["passed"]}
    assert failed == {"thresholds that were not counted or not timed": 1}
    assert "not counted" in skip_report.case_table(case) and "not run" in skip_report.case_table(case)
    monkeypatch.setattr(skip_calls.prefill_calls, "call_of", lambda *_: 1 / 0)
    case = measure(work, bench)
    assert case["dense"] is None and case["under_load"] is None and "not run" in skip_report.summary([case])


def dumped(path: Path) -> Path:
    """Three layers of two kinds, whose first keys get most of the attention."""
    torch.manual_seed(0)
    layers = {}
    for number in (0, 5, 11):
        q, k, v = torch.randn(512, 2, 64), torch.randn(512, 1, 64), torch.randn(512, 1, 64)
        q[..., 0], k[:64, :, 0] = 8.0, 8.0
        layers[number] = (q.bfloat16(), k.bfloat16(), v.bfloat16())
    qkv_file.write(path, layers, {5: 128, 11: 1024}, "toy", "a text")
    return path


def test_real_inputs_are_measured_layer_after_layer(tmp_path: Path) -> None:
    full, window = real_rows([dumped(tmp_path / "toy.pt")])
    assert full.label == "toy, 2 layers, 512 bf16, real" and window.label == "toy, 1 layers window 128, 512 bf16, real"
    assert full.layers is not None and full.layers.numbers == (0, 11), "a window as long as the text is none"
    bench = bench_of()
    subject = subject_of(full, bench)
    assert isinstance(subject, Prefill) and subject.counted == 2 and len(subject.calls(0.1)) == 2
    assert not torch.equal(subject.datas[0].q, subject.datas[1].q) and subject.packed(subject.calls(None))[1] == 5
    for work in (full, window):
        case = measure(work, bench)
        assert case["left_out"] == [587.18, 1390.63, 3293.04, 7799.91, 18471.56] and case["layers"] in (1, 2)
        assert all(check["passed"] for check in case["checks"]), case["checks"]
        for point, goal in zip(case["points"], case["goals"], strict=True):
            assert goal["bar"] == pytest.approx(0.9 / (1 - point["sparsity"] / 2), rel=1e-3)
            assert goal["value"] == point["speed"]["median"]
    counted = measure(full, bench)["points"][-1]
    assert 0.2 < counted["sparsity"] < 1 and counted["visited"] == 2 * 2 * (1 + 1 + 2 + 2 + 3 + 3 + 4 + 4)


def document_of(*cases: dict[str, Any]) -> dict[str, Any]:
    document = results.new_document("skip", ["--groups", "prefill"]) | {"gpu": "NVIDIA H100", "commit": "0123"}
    state = {"gpu": "NVIDIA H100", "driver": "580", "sm_clock_mhz": 1980.0}
    return document | {"cases": [*cases], "versions": {"torch": "2.11", "fa": None}, "before": state, "not_run": []}


def test_report_csv_and_pictures(tmp_path: Path) -> None:
    cases = [measured(label) for label in (PLANTED, PLANTED.replace("planted", "random"), STEP)]
    document, path = document_of(*cases), tmp_path / "skip-x.json"
    results.save(document, path)
    lines = skip.COMMAND.beside(document, path)
    endings = ("-sparsity.csv", "-time.csv", ".md", "-prefill.png", "-decode.png")
    assert lines == [str(tmp_path / f"skip-x{ending}") for ending in endings]
    assert all((tmp_path / f"skip-x{ending}").stat().st_size > 500 for ending in endings)
    counted, timed = ([*csv.DictReader((tmp_path / f"skip-x{name}").open())] for name in endings[:2])
    assert len(counted) == 9 and len(timed) == 12, "and a dense line for each row"
    first = cases[0]["points"][0]
    assert counted[0]["case"] == PLANTED and int(counted[0]["skipped"]) == first["skipped"]
    assert counted[0]["kernel"].endswith("_stat") and timed[0]["threshold"] == "" and timed[0]["speed_median"] == ""
    assert float(timed[1]["ms_median"]) == first["ms"]["median"] and timed[1]["threshold"] == counted[0]["threshold"]
    text = (tmp_path / "skip-x.md").read_text()
    for wanted in (
        "## prefill b1 16k bf16",
        "### planted inputs",
        "### random inputs",
        "580, sm_clock_mhz 1980",
        "torch 2.11",
        "0123",
    ):
        assert wanted in text
    assert text.count("| factor |") == 3 and text.count("## ") == 3 + 3 and "python -m bench skip" in text
    row = next(line for line in text.splitlines() if line.startswith("| 20 |"))
    assert f"{cases[0]['points'][1]['sparsity']:.1%}" in row and "50%" in row
    assert skip.main(["--report", str(path)]) == 0
    (tmp_path / "skip-x.md").unlink()
    assert skip.main(["--report", str(tmp_path / "none.json")]) == 1


def test_points_of_the_picture() -> None:
    speed = {"n": 3, "median": 1.4, "min": 1.2, "max": 1.6, "p10": 1.3, "p90": 1.5}
    points = [
        {"sparsity": 0.5, "speed": speed},
        {"sparsity": 0.1, "speed": {**speed, "median": 1.35}},
        {"sparsity": None, "speed": speed},
        {"sparsity": 0.7, "speed": None},
    ]
    lines = plot.speedups({"kind": "skip", "cases": [{"case": "a row", "points": points}]})
    assert lines == {"skimattn a row": [(0.1, 1.35, 1.3, 1.5), (0.5, 1.4, 1.3, 1.5)]}


def test_the_command_lists_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(dumped(tmp_path / "toy.pt"))
    assert skip.main(["--list", "--groups", "real", "wan", "--real", file]) == 0
    text = capsys.readouterr().out
    assert "toy, 2 layers, 512 bf16, real" in text and "Wan2.2 65k bf16, random" in text and "prefill b1" not in text
    for arguments in (["--real", str(tmp_path / "none.pt")], ["--real", str(tmp_path / "toy.bin")], ["--peers", "fa3"]):
        with pytest.raises(SystemExit):
            skip.main(arguments)
    text = capsys.readouterr().err
    assert "none.pt: expected a file that bench dump wrote" in text and "ends in .safetensors or .pt" in text
    assert "unrecognized arguments: --peers" in text, "nothing is compared with others"
    if not torch.cuda.is_available():
        assert skip.main([]) == 1 and "bench skip: expected an NVIDIA GPU" in capsys.readouterr().err
