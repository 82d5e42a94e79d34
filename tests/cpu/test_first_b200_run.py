"""The script for a B200's first day: what can be tried of it without one, and what it says when something fails."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import first_b200_run as first

BY_NAME = {stage.name: stage for stage in first.STAGES}
CHEAP = [BY_NAME[name] for name in ("environment", "probes", "build", "checked_kernels", "timing", "decode_timing")]


def test_a_dry_run_of_what_is_cheap(capsys: pytest.CaptureFixture[str]) -> None:
    found = first.run_all(CHEAP, dry=True)
    status = {row["stage"]: row["status"] for row in found["stages"]}
    assert status == {
        "environment": "passed",
        "probes": "passed",
        "build": "passed",
        "checked_kernels": "passed",
        "timing": "skipped",
        "decode_timing": "skipped",
    }, found
    assert found["verdict"] == "passed as far as it can be tried here; not tried: timing, decode_timing"
    agree = found["stages"][1]["agree"]
    assert len(agree) >= 3 and all(text.split(" of ")[0] == text.split(" of ")[1] for text in agree.values())
    assert "environment    passed" in capsys.readouterr().out


def test_without_a_blackwell_gpu_it_says_so_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first, "STAGES", first.STAGES[:2])
    summary = tmp_path / "first.json"
    assert first.main(["--summary", str(summary)]) == 1
    found = json.loads(summary.read_text())
    assert [row["status"] for row in found["stages"]] == ["failed", "not run"]
    assert found["verdict"] == "failed at environment, 1 problems; another machine is needed"


def test_a_stage_that_hangs_is_ended() -> None:
    row = first.run_stage(replace(BY_NAME["probes"], limit_s=0.05), dry=True)
    assert row["status"] == "failed" and row["problems"][0] == "not done after 0 s: hung"


def test_what_a_hanging_stage_started_is_ended_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark or a test run that hangs on the GPU must not go on holding it."""
    script, note = tmp_path / "stage.py", tmp_path / "pid"
    script.write_text(
        "import pathlib, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(note)!r}).write_text(str(child.pid))\n"
        "print('case 7', flush=True)\n"
        "child.wait()\n"
    )
    monkeypatch.setattr(first, "__file__", str(script))
    start = time.monotonic()
    row = first.run_stage(replace(BY_NAME["timing"], limit_s=3), dry=True)
    assert time.monotonic() - start < 30  # the child holds the output open for 60
    assert row["status"] == "failed" and row["problems"] == ["not done after 3 s: hung", "case 7"]
    assert ends(Path(f"/proc/{note.read_text()}/stat"), within_s=20)


def ends(stat: Path, within_s: float) -> bool:
    """Whether the process of this ``/proc/PID/stat`` ends (a zombie has): a kill takes effect when it is scheduled."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def test_a_stage_that_breaks_says_how() -> None:
    def no_such_stage(dry: bool) -> dict[str, Any]:
        raise AssertionError

    row = first.run_stage(first.Stage(no_such_stage, 60, ""), dry=True)
    assert row["status"] == "failed" and "invalid choice: 'no_such_stage'" in row["problems"][-1]


def test_differences_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.helpers import probe_run, probes

    monkeypatch.setattr(probe_run, "on_emulator", lambda part: {part[0].name: 7})
    found = first.issue_order(True)
    assert "products execute in the order of issue): 7 cells of tensor memory differ" in found["problems"][0]
    order = [program for program in probes.programs() if program.name.startswith("order")]
    counts = [list(map(int, text.split(" of "))) for text in found["agree"].values()]
    assert sum(total for _, total in counts) == len(order)
    assert sum(agree for agree, _ in counts) == len(order) - len(found["problems"])
    rows = [{"status": "passed", "problems": []}, {"status": "failed", "problems": found["problems"]}]
    said = first.verdict([BY_NAME["probes"], BY_NAME["issue_order"]], rows)
    assert said.startswith("failed at issue_order") and "ordered_products = False" in said


def bench_that_stops(finished: str | None, cases: list[dict[str, Any]], status: int) -> Any:
    """A stand-in for ``_command``: a run of ``bench prefill`` that leaves this behind."""

    def command(words: list[str]) -> subprocess.CompletedProcess[str]:
        folder = Path(words[words.index("--out") + 1])
        (folder / "prefill.json").write_text(json.dumps({"finished": finished, "cases": cases}))
        return subprocess.CompletedProcess(words, status, "", "CudaError: an illegal instruction")

    return command


def test_a_benchmark_that_breaks_off_has_not_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    case = {"case": "16384 causal", "rows": [{"name": "ours dense", "tflops": 1.0}], "checks": [{"passed": True}]}
    monkeypatch.setattr(first, "_command", bench_that_stops("now", [case], 0))
    assert first.timing(False)["problems"] == []
    monkeypatch.setattr(first, "_command", bench_that_stops(None, [case], 1))
    assert first.timing(False)["problems"][-1] == "CudaError: an illegal instruction"
    wrong = {**case, "checks": [{"passed": False}]}
    monkeypatch.setattr(first, "_command", bench_that_stops("now", [wrong], 1))
    assert first.timing(False)["problems"] == ["wrong output: {'passed': False}"]
    case = {"case": "b64 16k", "rows": [{"name": "ours dense", "us": {"median": 1.0}}], "checks": []}
    monkeypatch.setattr(first, "_command", bench_that_stops("now", [case], 0))
    found = first.decode_timing(False)
    assert (found["problems"], found["us"]) == ([], [["b64 16k", "ours dense", {"median": 1.0}]])


def test_hints_name_what_exists() -> None:
    from skimattn.codegen.tiles.sm100_prefill import Sm100PrefillTile

    assert hasattr(Sm100PrefillTile, "ordered_products")
    root = Path(first.__file__).resolve().parents[1]
    tables = "codegen/tiles/sm100_prefill.py"
    for path in (tables, "tests/helpers/placement.py", "tests/helpers/probes.py", "tests/gpu/test_gpu_cases.py"):
        assert (root / path).is_file()
    assert any(tables in stage.hint for stage in first.STAGES)
