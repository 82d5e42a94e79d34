"""A server: its engine is another process than the one that shows metrics."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import ROOT, Models, environment

HEADS, LAYERS, LENGTH, NEW = 9, 30, 300, 4


def guided() -> list[str]:
    """What the guide says behind ``vllm serve MODEL``, with a threshold at which such short prompts skip.

    The build for CPUs has no metadata that the command ``vllm`` could read its version from.
    """
    line = re.search(r"^vllm serve MODEL (.*)$", (ROOT / "docs" / "vllm.md").read_text(), re.MULTILINE)
    assert line is not None and "0.01" in line[1]
    return shlex.split(line[1].replace("0.01", "0.95"))


@pytest.fixture
def server(models: Models, tmp_path: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(models.whole), *guided()]
    words += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"]
    words += ["--enforce-eager", "--max-model-len", "1024", "--served-model-name", "small"]
    log = tmp_path / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            words,
            env=environment(True) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(300):
                if process.poll() is not None:
                    pytest.fail(log.read_text()[-4000:])
                try:
                    urllib.request.urlopen(f"{address}/health", timeout=2)
                    break
                except OSError:
                    time.sleep(1)
            yield address
        finally:
            process.terminate()
            process.wait(60)


def tiles(address: str) -> dict[tuple[str, str], float]:
    """What the endpoint shows: by (visited or skipped, phase)."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    lines = re.findall(r"^skimattn_tiles_(\w+)_total\{(.*)\} (\S+)$", text, re.MULTILINE)
    found = {}
    for kind, labels, value in lines:
        assert 'model_name="small"' in labels and 'engine="0"' in labels
        phase = re.search(r'phase="(\w+)"', labels)
        assert phase is not None
        found[kind, phase[1]] = float(value)
    return found


def test_tiles_by_phase_on_the_metrics_endpoint(server: str, models: Models) -> None:
    assert set(tiles(server).values()) == {0.0} and len(tiles(server)) == 4, "of all phases, from the beginning"
    body = {"model": "small", "prompt": models.tokens[:LENGTH], "max_tokens": NEW, "temperature": 0, "ignore_eos": True}
    for _ in range(2):  # the second is what makes the first one show, or the ten seconds that vLLM waits
        asked = urllib.request.Request(
            f"{server}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=300) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == NEW
        time.sleep(1)
    groups = [min(64 * group + 64, LENGTH) for group in range(-(-LENGTH // 64))]
    prefill = LAYERS * HEADS * sum(-(-end // 128) for end in groups)
    decode = LAYERS * HEADS * sum(-(-(LENGTH + step) // 128) for step in range(1, NEW))
    for _ in range(15):
        found = tiles(server)
        if found["visited", "decode"] >= 2 * decode:
            break
        time.sleep(1)
    # The second prompt finds two blocks of 128 keys in the cache, and computes what is behind them.
    behind = LAYERS * HEADS * (-(-LENGTH // 128))
    assert found["visited", "prefill"] == prefill + behind and found["visited", "decode"] == 2 * decode
    assert 0 < found["skipped", "prefill"] < found["visited", "prefill"] and found["skipped", "decode"] > 0
