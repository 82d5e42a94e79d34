"""A server: its engine is another process than the one that shows metrics."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..serving import LAYERS, post, serving, shown_tiles, visited_by_decode, visited_by_prefill
from .conftest import ROOT, Models, environment

LENGTH, NEW = 300, 4


def guided() -> list[str]:
    """What the guide says behind ``vllm serve MODEL``, with a threshold at which such short prompts skip.

    The build for CPUs has no metadata that the command ``vllm`` could read its version from.
    """
    line = re.search(r"^vllm serve MODEL (.*)$", (ROOT / "docs" / "vllm.md").read_text(), re.MULTILINE)
    assert line is not None and "0.01" in line[1]
    return shlex.split(line[1].replace("0.01", "0.95"))


@pytest.fixture
def server(models: Models, tmp_path: Path) -> Iterator[str]:
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(models.whole), *guided()]
    words += ["--dtype", "bfloat16", "--enforce-eager", "--max-model-len", "1024", "--served-model-name", "small"]
    told = environment(True) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with serving(words, told, tmp_path / "server.log") as address:
        yield address


def test_tiles_by_phase_on_the_metrics_endpoint(server: str, models: Models) -> None:
    assert set(shown_tiles(server).values()) == {0.0} and len(shown_tiles(server)) == 4, (
        "of all phases, from the beginning"
    )
    body = {"model": "small", "prompt": models.tokens[:LENGTH], "max_tokens": NEW, "temperature": 0, "ignore_eos": True}
    for _ in range(2):  # the second is what makes the first one show, or the ten seconds that vLLM waits
        assert post(f"{server}/v1/completions", body)["usage"]["completion_tokens"] == NEW
        time.sleep(1)
    prefill = LAYERS * visited_by_prefill(LENGTH)
    decode = LAYERS * visited_by_decode(range(LENGTH + 1, LENGTH + NEW))
    for _ in range(15):
        found = shown_tiles(server)
        if found["visited", "decode"] >= 2 * decode:
            break
        time.sleep(1)
    # The second prompt finds two blocks of 128 keys in the cache, and computes what is behind them.
    behind = LAYERS * visited_by_decode([LENGTH])
    assert found["visited", "prefill"] == prefill + behind and found["visited", "decode"] == 2 * decode
    assert 0 < found["skipped", "prefill"] < found["visited", "prefill"] and found["skipped", "decode"] > 0
