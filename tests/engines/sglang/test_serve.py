"""A server: its workers are other processes than the one that shows metrics."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..serving import post, serving, shown_tiles, visited_by_decode, visited_by_prefill
from ..smollm2 import CUT
from .conftest import HERE, ROOT, Models, environment

LENGTH, NEW = 800, 4  # three layers skip nothing of 300


def guided() -> list[str]:
    """What the guide says behind ``--model-path MODEL``."""
    text = (ROOT / "docs" / "sglang.md").read_text()
    line = re.search(r"^python -m sglang.launch_server --model-path MODEL (.*)$", text, re.MULTILINE)
    assert line is not None
    return shlex.split(line[1])


@pytest.fixture
def server(models: Models, tmp_path: Path) -> Iterator[str]:
    words = [sys.executable, str(HERE / "serve.py"), "--model-path", str(models.cut), *guided()]
    words += ["--device", "cpu", "--dtype", "bfloat16", "--max-total-tokens", "4096", "--context-length", "1024"]
    words += ["--skip-server-warmup", "--served-model-name", "small"]
    words += ["--disable-overlap-schedule"]  # else a step more may be computed than anyone asked for
    told = environment(SKIMATTN_SGLANG_CONFIG='{"threshold": 0.95}')  # at which short prompts skip
    with serving(words, told, tmp_path / "server.log") as address:
        yield address


def test_tiles_by_phase_on_the_metrics_endpoint(server: str, models: Models) -> None:
    before = shown_tiles(server)  # SGLang answers who asks for its health by a request of one token
    assert len(before) == 4, "of all phases, from the beginning"
    how = {"temperature": 0, "max_new_tokens": NEW, "ignore_eos": True}
    body = {"input_ids": models.tokens[:LENGTH], "sampling_params": how}
    assert post(f"{server}/generate", body)["meta_info"]["completion_tokens"] == NEW
    prefill = len(CUT) * visited_by_prefill(LENGTH)
    decode = len(CUT) * visited_by_decode(range(LENGTH + 1, LENGTH + NEW))
    for _ in range(15):
        found = {kind: tiles - before[kind] for kind, tiles in shown_tiles(server).items()}
        if found["visited", "decode"] >= decode:
            break
        time.sleep(1)
    assert (found["visited", "prefill"], found["visited", "decode"]) == (prefill, decode)
    assert 0 < found["skipped", "prefill"] < prefill and found["skipped", "decode"] > 0
