"""Statistics of runs: what is written, what is lost, what is read and shown."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimattn import ArgumentError
from skimattn.sparse import StatLog, attention_modules, disable, policy_of, read_statistics, sparsify, summary
from skimattn.sparse.statlog.counters import Slot
from skimattn.tools import stats
from skimattn.tools.tile_map import ASCII

from tests.helpers.sparse_models import ToyModel
from tests.helpers.standin import ROOT

CPU = torch.device("cpu")


def model(layers: int = 2) -> torch.nn.Module:
    return sparsify(ToyModel(layers), {"threshold": {"prefill": 0.1, "decode": 0.2}})


def call(model: torch.nn.Module, phase: Any, tiles: list[list[int]]) -> None:
    """What a forward pass adds, by layer."""
    for module, counts in zip(attention_modules(model).values(), tiles, strict=True):
        policy = policy_of(module)
        assert policy is not None and policy.collector is not None
        collected = policy.collector.counts(phase, 3, 8, CPU)
        assert collected is not None and collected.shape == (2,) and collected.data_ptr() % 16 == 0
        collected += torch.tensor(counts)


def test_steps_are_what_was_added_in_them(tmp_path: Path) -> None:
    toy, path = model(), tmp_path / "deep" / "stats.jsonl"
    with StatLog(path, toy) as log:
        call(toy, "prefill", [[10, 1], [10, 5]])
        log.step(requests={"prefill": 2}, tokens={"prefill": 900})
        log.step()
        for _ in range(2):
            call(toy, "decode", [[4, 2], [4, 0]])
        call(toy, "prefill", [[1, 1], [0, 0]])
        log.step(requests={"prefill": 1, "decode": 7}, tokens={"decode": 7})
    header, *rows = (json.loads(line) for line in path.read_text().splitlines())
    assert header["layers"] == ["layers.0.self_attn", "layers.1.self_attn"] and header["world"] == 1
    assert header["rules"] == [{"prefill": [0.1, 0.0], "decode": [0.2, 0.0]}] * 2
    assert [row["step"] for row in rows] == [0, 1, 2] and "requests" not in rows[1]
    assert [row["tiles"] for row in rows] == [
        {"prefill": [[10, 1], [10, 5]]},
        {},
        {"prefill": [[1, 1], [0, 0]], "decode": [[8, 4], [8, 0]]},
    ]
    whole = json.loads((path.parent / "stats.summary.json").read_text())
    assert whole["tiles"] == {"prefill": [[11, 2], [10, 5]], "decode": [[8, 4], [8, 0]]}
    assert (whole["requests.prefill"], whole["tokens.decode"], whole["steps"], whole["ranks"]) == (3, 7, 3, 1)
    found = read_statistics(path)
    assert found.tiles["decode"].sum(0).tolist() == [[8, 4], [8, 0]] and found.requests["prefill"].tolist() == [2, 0, 1]
    assert found.shares("prefill")[0, [0, 2]].tolist() == [0.1, 1.0] and np.isnan(found.shares("prefill")[1, 2])


def test_collectors_come_back_and_summary_reads_its_own(tmp_path: Path) -> None:
    toy = sparsify(ToyModel(), {"threshold": 0.1}, count=True)
    own = [policy_of(module).collector for module in attention_modules(toy).values()]  # type: ignore[union-attr]
    log = StatLog(tmp_path / "x.jsonl", toy)
    call(toy, "prefill", [[5, 5]] * 4)
    log.close()
    log.close()
    assert [policy_of(module).collector for module in attention_modules(toy).values()] == own  # type: ignore[union-attr]
    assert summary(toy).sparsity("prefill") is None, "it was the log that counted"


def test_rules_that_change_are_written(tmp_path: Path) -> None:
    toy = model()
    with StatLog(tmp_path / "x.jsonl", toy) as log:
        log.step()
        disable(toy)
        log.step()
        log.step()
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()[1:]]
    assert ["rules" in row for row in rows] == [False, True, False] and rows[1]["rules"] == [{}, {}]


def test_the_configuration_may_name_the_file(tmp_path: Path) -> None:
    named = ToyModel(layers=1)
    sparsify(named, {"threshold": 0.1, "stat_log_path": str(tmp_path / "named.jsonl")})
    with StatLog(None, named) as log:
        log.step(requests={"prefill": 3})
    assert list(read_statistics(tmp_path / "named.jsonl").requests["prefill"]) == [3]
    sparsify(named, {"threshold": 0.1})
    with pytest.raises(ArgumentError, match=r"path: expected a file, or .* stat_log_path \(got None"):
        StatLog(None, named)


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = model()
    with pytest.raises(ArgumentError, match=r"^model: expected one with policies, such as sparsify .*ToyModel"):
        StatLog(tmp_path / "x", ToyModel())
    with pytest.raises(ArgumentError, match=r"^most_lost: expected 1 or more"):
        StatLog(tmp_path / "x", toy, most_lost=0)
    log = StatLog(tmp_path / "x", toy)
    with pytest.raises(ArgumentError, match=r"^tokens.prompt: expected prefill or decode"):
        log.step(tokens={"prompt": 1})  # type: ignore[dict-item]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(ArgumentError, match=r"^step: expected to be called between replays"):
        log.step()
    log.close()
    with pytest.raises(ArgumentError, match=r"^step: expected a log that is open"):
        log.step()
    for text in ("", "{}\n", "nonsense\n", '{"format": 9}\n'):
        (tmp_path / "other").write_text(text)
        with pytest.raises(ArgumentError, match=r"other: expected a log that StatLog wrote"):
            read_statistics(tmp_path / "other")


def test_an_error_in_between_keeps_what_there_is(tmp_path: Path) -> None:
    toy = model()
    with pytest.raises(KeyError), StatLog(tmp_path / "x.jsonl", toy) as log:
        call(toy, "decode", [[5, 1], [5, 2]])
        log.step()
        raise KeyError
    assert read_statistics(tmp_path / "x.jsonl").tiles["decode"].sum((0, 1)).tolist() == [10, 3]
    assert json.loads((tmp_path / "x.summary.json").read_text())["steps"] == 1


def test_a_device_that_fails_leaves_what_had_arrived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    toy, wait, waits = model(), Slot.wait, []

    def fails(slot: Slot) -> torch.Tensor:
        waits.append(slot)
        if len(waits) > 2:
            raise RuntimeError("an illegal memory access was encountered")
        return wait(slot)

    monkeypatch.setattr(Slot, "wait", fails)
    with StatLog(tmp_path / "x.jsonl", toy, most_lost=2) as log:
        for _ in range(6):
            call(toy, "prefill", [[1, 1], [1, 0]])
            log.step()
    found = read_statistics(tmp_path / "x.jsonl")
    assert found.steps == (0, 1) and found.lost == 4 and "illegal memory" in str(found.failure)
    assert "4 steps were lost: an illegal memory access" in caplog.text


KILLED = """
import os, signal, sys, torch
from tests.cpu.test_sparse_statlog import call, model
from skimattn.sparse import StatLog
toy = model()
log = StatLog(sys.argv[1], toy, most_lost=8)
for step in range(200):
    call(toy, "decode", [[3, 1], [3, 2]])
    log.step(tokens={"decode": 1})
if sys.argv[2] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("end", ["kill", "exit"])
def test_a_process_that_is_killed_loses_little_and_one_that_ends_nothing(tmp_path: Path, end: str) -> None:
    path = tmp_path / "x.jsonl"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), end], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == (-signal.SIGKILL if end == "kill" else 0), done.stderr
    found = read_statistics(path)
    assert len(found.steps) >= 192 if end == "kill" else len(found.steps) == 200
    assert found.tiles["decode"].sum((0, 1)).tolist() == [6 * len(found.steps), 3 * len(found.steps)]
    assert (tmp_path / "x.summary.json").exists() is (end == "exit")


def test_a_line_that_was_cut_is_left_out(tmp_path: Path) -> None:
    toy, path = model(), tmp_path / "x.jsonl"
    with StatLog(path, toy) as log:
        for _ in range(3):
            call(toy, "decode", [[3, 1], [3, 2]])
            log.step()
    path.write_bytes(path.read_bytes()[:-5])
    assert read_statistics(path).steps == (0, 1)


RANKS = """
import sys, torch
from tests.cpu.test_sparse_statlog import call, model
from skimattn.sparse import StatLog
folder, rank = sys.argv[1], int(sys.argv[2])
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
for name in ("same", "own"):
    toy = model()
    with StatLog(f"{folder}/{name}.jsonl", toy, same_requests=name == "same") as log:
        for step in range(2 + rank):
            call(toy, "decode", [[10, rank], [10, 5]])
            log.step(requests={"decode": 4})
torch.distributed.destroy_process_group()
"""


def test_ranks_are_added_up(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RANKS, str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)], cwd=ROOT, stderr=subprocess.PIPE) for rank in range(2)]
    for rank in ranks:
        assert rank.wait(60) == 0, rank.stderr and rank.stderr.read().decode()
    for name, requests in (("same", [4, 4, 0]), ("own", [8, 8, 4])):
        whole = json.loads((tmp_path / f"{name}.summary.json").read_text())
        assert whole["ranks"] == 2 and whole["tiles"]["decode"] == [[50, 3], [50, 25]]
        assert whole["requests.decode"] == sum(requests)
        found = read_statistics(tmp_path / f"{name}.jsonl")
        assert found.ranks == 2 and found.steps == (0, 1, 2) and found.requests["decode"].tolist() == requests
        assert found.tiles["decode"][:, 0].tolist() == [[20, 1], [20, 1], [10, 1]]
        assert (tmp_path / f"{name}.rank1.jsonl").exists() and not list(tmp_path.glob("*.tmp"))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    toy = model(3)
    with StatLog(tmp_path / "x.jsonl", toy) as log:
        for step in range(200):
            call(toy, "prefill", [[100, 100 * (step >= 100)], [100, 50], [0, 0]])
            log.step(requests={"prefill": 1}, tokens={"prefill": 10})
    return tmp_path / "x.jsonl"


def test_tables_and_drawings(written: Path) -> None:
    text = "\n".join(stats.lines(written, width=46))
    assert text.startswith("200 steps, 3 layers, 1 ranks")
    assert re.search(r"layers.1.self_attn +20000 +10000 +50.0 %", text)
    assert re.search(r"all +40000 +20000 +50.0 %\nprefill: 200 requests, 2000 tokens", text)
    assert f"   0  {' ' * 20}{'█' * 20}\n   1  {'▒' * 40}\n   2  {'·' * 40}" in text and "decode" not in text
    assert f"   1  {'-' * 40}\n   2  {'_' * 40}" in "\n".join(stats.lines(written, 46, ASCII))
    assert stats.summary(read_statistics(written))["phases"]["prefill"]["layers"]["layers.2.self_attn"] == {
        "visited": 0,
        "skipped": 0,
        "sparsity": None,
    }


def test_pictures(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stats.write_png(tmp_path / "x.png", read_statistics(written))
    pixels = np.asarray(Image.open(tmp_path / "x.png"))
    assert pixels.shape == (24, 1600, 3)
    assert [pixels[y, x].tolist() for y, x in ((0, 0), (0, 1599), (23, 0))] == [
        [255, 255, 255],
        [0x1F, 0x4E, 0x79],
        [0xD0] * 3,
    ]
    with StatLog(tmp_path / "empty.jsonl", model()) as log:
        log.step()
    with pytest.raises(ArgumentError, match=r"^--png: expected a log with counts"):
        stats.write_png(tmp_path / "y.png", read_statistics(tmp_path / "empty.jsonl"))
    assert "nothing was counted" in list(stats.lines(tmp_path / "empty.jsonl"))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'skimattn\[pictures\]'"):
        stats.write_png(tmp_path / "y.png", read_statistics(written))
