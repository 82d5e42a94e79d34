"""``bench serve`` from its command line to its result file: two servers of vLLM, and vLLM's own client."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench import results, serve_models

from .conftest import ROOT

LAYERS, HEADS, LENGTH, REQUESTS, NEW = 2, 4, 1024, 2, 4


def test_two_servers_answer_the_same_requests(tmp_path: Path) -> None:
    words = ["--tiny", "--only", "c2", "--shares", "0.9", "--no-attention", "--work", str(tmp_path / "work")]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "bench", "serve", *words, "--out", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=600,
    )
    logs = "".join(file.read_text()[-1500:] for file in (tmp_path / "work").glob("*.log"))
    assert done.returncode == 0, done.stderr[-3000:] + logs
    [path] = tmp_path.glob("serve-*.json")
    [case] = results.load(path)["cases"]
    assert case["case"] == "planted 1k c2" and "servers in turns" in done.stdout
    rows = {row["name"]: row for row in case["rows"]}
    assert list(rows) == ["vllm", "ours 0.9"]
    assert not any(counts["visited"] for counts in rows["vllm"]["tiles"].values()), "its attention is vLLM's own"
    requests = serve_models.read_requests(tmp_path / "work" / "planted-1k-c2.jsonl")
    assert [len(row["prompt"]) for row in requests] == [LENGTH] * REQUESTS
    # Both rounds, the first of which warms up: all tokens of all requests went through our kernels, none twice.
    groups = sum(-(-(64 * group + 64) // 128) for group in range(LENGTH // 64))
    tiles = rows["ours 0.9"]["tiles"]
    assert tiles["prefill"]["visited"] == 2 * REQUESTS * LAYERS * HEADS * groups
    steps = sum(-(-(LENGTH + step) // 128) for step in range(1, NEW))
    assert tiles["decode"]["visited"] == 2 * REQUESTS * LAYERS * HEADS * steps
    assert 0.3 < rows["ours 0.9"]["sparsity"]["prefill"] < 0.9 and rows["ours 0.9"]["sparsity"]["decode"] > 0.5
    for row in rows.values():
        assert row["ttft"]["n"] == row["tpot"]["n"] == REQUESTS and 0 < row["tpot"]["median"] < row["ttft"]["median"]
    assert {(one["of"], one["over"]) for one in case["comparisons"]} == {("ours 0.9", "vllm")}
    assert path.with_suffix(".png").exists()
