"""A server: its workers are other processes than the one that shows metrics."""

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

from .conftest import HERE, ROOT, Models, environment

HEADS, LAYERS, LENGTH, NEW = 9, 3, 300, 4


def guided() -> list[str]:
    """What the guide says behind ``--model-path MODEL``."""
    text = (ROOT / "docs" / "sglang.md").read_text()
    line = re.search(r"^python -m sglang.launch_server --model-path MODEL (.*)$", text, re.MULTILINE)
    assert line is not None
    return shlex.split(line[1])


@pytest.fixture
def server(models: Models, tmp_path: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, str(HERE / "serve.py"), "--model-path", str(models.cut), *guided()]
    words += [
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
        "--dtype",
        "bfloat16",
        "--max-total-tokens",
        "4096",
    ]
    words += ["--context-length", "1024", "--skip-server-warmup", "--served-model-name", "small"]
    words += ["--disable-overlap-schedule"]  # else a step more may be computed than anyone asked for
    told = environment(SKIMATTN_SGLANG_CONFIG='{"threshold": 0.95}')  # at which such short prompts skip
    log = tmp_path / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(words, env=told, stdout=out, stderr=subprocess.STDOUT)
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
    found = {}
    for kind, labels, value in re.findall(r"^skimattn_tiles_(\w+)_total\{(.*)\} (\S+)$", text, re.MULTILINE):
        assert 'model_name="small"' in labels and 'engine="0"' in labels
        phase = re.search(r'phase="(\w+)"', labels)
        assert phase is not None
        found[kind, phase[1]] = float(value)
    return found


def test_tiles_by_phase_on_the_metrics_endpoint(server: str, models: Models) -> None:
    assert set(tiles(server).values()) == {0.0} and len(tiles(server)) == 4, "of all phases, from the beginning"
    how = {"temperature": 0, "max_new_tokens": NEW, "ignore_eos": True}
    body = {"input_ids": models.tokens[:LENGTH], "sampling_params": how}
    asked = urllib.request.Request(
        f"{server}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=300) as answer:
        assert json.load(answer)["meta_info"]["completion_tokens"] == NEW
    groups = [min(64 * group + 64, LENGTH) for group in range(-(-LENGTH // 64))]
    prefill = LAYERS * HEADS * sum(-(-end // 128) for end in groups)
    decode = LAYERS * HEADS * sum(-(-(LENGTH + step) // 128) for step in range(1, NEW))
    for _ in range(15):
        found = tiles(server)
        if found["visited", "decode"] >= decode:
            break
        time.sleep(1)
    assert (found["visited", "prefill"], found["visited", "decode"]) == (prefill, decode)
    assert 0 < found["skipped", "prefill"] < prefill and found["skipped", "decode"] > 0
