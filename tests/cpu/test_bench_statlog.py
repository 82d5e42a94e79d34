"""``bench statlog`` on a small stack on the CPU: what is logged, what is checked, and the clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from skimattn.sparse import StatLog, policy_of

from bench import plot, results, statlog
from bench.host_shapes import in_turn
from bench.stack import Layer, input_of, stack_of, twin_of
from bench.statlog import Bench, measure
from bench.statlog_work import OFF, ON, WORKS, Work
from bench.timing import Call, Repeated, StepTimer
from tests.helpers.place_timer import PlaceTimer

SMALL = Work("small", "prefill", 1, 128, layers=2, hidden=64, inner=64, heads_q=2, heads_kv=1, head_dim=64)
STEP = replace(SMALL, label="step", phase="decode", batch=2, length=256)


@pytest.fixture(autouse=True)
def no_built_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIMATTN_KERNELS", str(tmp_path))


class Ticking:
    """Every step is made, and takes its place in ms."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def round(self, calls: Any) -> list[float]:
        for call in calls:
            call()
        return PlaceTimer().round(calls)


def replayed(calls: Sequence[Call], count: int) -> Call:
    """Stands in for a CUDA graph."""
    return Repeated(in_turn(calls), count)


def bench_of(timer: Callable[[int], Any] = Ticking) -> Bench:
    return Bench("cpu", timer, 2, replayed)


def test_rows_of_the_command() -> None:
    assert {work.phase for work in WORKS} == {"prefill", "decode"} and len({work.label for work in WORKS}) == len(WORKS)
    for work in WORKS:
        assert [(goal.of, goal.over, goal.bar) for goal in work.goals] == [(ON, OFF, 0.99)]
        assert work.heads_q % work.heads_kv == 0 and work.length % 64 == 0


@pytest.mark.parametrize("work", [SMALL, STEP], ids=lambda work: work.label)
def test_a_row_is_measured_and_what_was_logged_is_checked(work: Work) -> None:
    case = measure(work, bench_of())
    assert [row["name"] for row in case["rows"]] == [OFF, ON]
    assert len(case["checks"]) == 3 and all(check["passed"] for check in case["checks"]), case["checks"]
    [speed], [goal] = case["comparisons"], case["goals"]
    assert goal["value"] == speed["speed"]["median"] == 1.25, "1 ms to 2 ms and 2 ms to 1 ms"
    assert "ours StatLog on over ours StatLog off 1.250, wanted 0.99: reached" in statlog.case_table(case)
    assert "1 of 1 goals reached" in statlog.summary([case])


def test_twins_share_weights_and_not_what_they_count() -> None:
    off = stack_of(STEP, "cpu")
    on = twin_of(off)
    for one, other in zip(off, on, strict=True):
        assert isinstance(one, Layer) and isinstance(other, Layer)
        assert one.down.weight is other.down.weight and one.self_attn.qkv.weight is other.self_attn.qkv.weight
        assert one.self_attn.cache["k"] is other.self_attn.cache["k"]
        assert policy_of(one.self_attn) is not policy_of(other.self_attn)
    x = input_of(STEP, "cpu")
    assert x.shape == (2, 1, 64) and torch.equal(on(x), off(x)) and on(x).float().std() > 0.5


def test_a_step_that_counts_too_much_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = StatLog.step, [0]

    def twice(log: StatLog, **options: Any) -> None:
        calls[0] += 1
        if calls[0] != 4:  # one that is not told: its tiles are counted with the next
            real(log, **options)

    monkeypatch.setattr(StatLog, "step", twice)
    case = measure(SMALL, bench_of())
    assert [check["against"] for check in case["checks"] if not check["passed"]] == ["steps with tiles too many or few"]
    assert "FAILED: ours StatLog on: steps with tiles" in statlog.case_table(case)


def test_a_step_is_timed_until_the_device_is_done() -> None:
    log: list[str] = []
    clock = iter([1.0, 1.5, 2.0, 2.2])
    timer = StepTimer(lambda: log.append("wait"), 2, lambda: next(clock))
    times = timer.round([lambda: log.append("a"), lambda: log.append("b")])
    assert times == pytest.approx([250.0, 100.0])
    assert log == ["wait", "a", "a", "wait", "wait", "b", "b", "wait"]


def test_a_run_needs_a_gpu_and_has_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = results.new_document("statlog", []) | {"cases": [measure(SMALL, bench_of())]}
    assert plot.draw(document, tmp_path / "x.png").startswith("no picture")
    if not torch.cuda.is_available():
        assert statlog.main([]) == 1 and "bench statlog: expected an NVIDIA GPU" in capsys.readouterr().err
