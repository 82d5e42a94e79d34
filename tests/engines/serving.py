"""What tests of the engines that serve have in common: SmolLM2's tiles, and servers that are asked over HTTP."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from skimattn.integrations.transformers import register
from skimattn.sparse import read_statistics, sparsify, summary

from .smollm2 import Models

HEADS, LAYERS = 9, 30
PROMPTS = {"1100": 150, "2300": 1400, "4000": 2100}  # length, and where in the text it begins
SPARSE = {"threshold": {"prefill": 0.05, "decode": 0.02}}


@dataclass(frozen=True)
class Runs:
    """What an engine's own back end made, what ours made, and where ours logged."""

    prompts: dict[str, list[int]]
    base: list[Any]
    ours: list[Any]
    logs: Path


def assert_same_tokens(made: list[Any], wanted: list[Any]) -> None:
    """Up to the first step whose two best tokens lie closer together than bf16 tells them apart."""
    for one, other in zip(made, wanted, strict=True):
        for index, (got, want) in enumerate(zip(one["tokens"], other["tokens"], strict=True)):
            margin = other["best"][index][0] - other["best"][index][1]
            if got != want:
                assert margin < 0.15, f"step {index}: {got} in place of {want}, which is better by {margin:.3f} nats"
                break
            assert abs(one["best"][index][0] - other["best"][index][0]) < 0.2
        assert index >= 1, "more than one token was compared"


def visited_by_prefill(length: int) -> int:
    """Tiles of 128 keys that groups of 64 rows see, of all heads of a layer."""
    return HEADS * sum(-(-min(64 * group + 64, length) // 128) for group in range(-(-length // 64)))


def visited_by_decode(lengths: Sequence[int]) -> int:
    """The same of single rows that see so many keys."""
    return HEADS * sum(-(-length // 128) for length in lengths)


def assert_tiles_of_each_phase(log: Path, shown: Mapping[str, Any]) -> None:
    """Of a prompt of 1100 tokens and three more, of the whole model with ``SPARSE``."""
    found = read_statistics(log)
    assert found.layers == tuple(f"model.layers.{index}.self_attn.attn" for index in range(LAYERS))
    prefill, decode = found.tiles["prefill"].sum(0), found.tiles["decode"].sum(0)
    assert prefill[:, 0].tolist() == [visited_by_prefill(1100)] * LAYERS
    assert decode[:, 0].tolist() == [visited_by_decode([1101, 1102, 1103])] * LAYERS
    assert found.requests["decode"].tolist() == [0, 1, 1, 1] and found.tokens["prefill"].tolist() == [1100, 0, 0, 0]
    for tiles, low, high in ((prefill, 0.05, 0.6), (decode, 0.1, 0.8)):
        assert low < tiles[:, 1].sum() / tiles[:, 0].sum() < high
    assert shown == {"prefill": prefill.sum(0).tolist(), "decode": decode.sum(0).tolist()}, "who looks on gets the same"


def assert_tiles_of_transformers(models: Models, prompt: Sequence[int], log: Path) -> None:
    """Another library's own caches, masks and projections; only kernels are shared, and bf16 rounds elsewhere."""
    register()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        models.whole, dtype=torch.bfloat16, attn_implementation="skimattn"
    )
    sparsify(model, SPARSE, count=True)
    with torch.no_grad():
        model(torch.tensor([list(prompt)]), use_cache=False)
    rows = [row for row in summary(model).rows if row.phase == "prefill"]
    tiles = read_statistics(log).tiles["prefill"].sum(0)
    assert [row.visited for row in rows] == tiles[:, 0].tolist()
    theirs = np.array([row.skipped for row in rows])
    assert np.abs(theirs - tiles[:, 1]).max() <= 6 + 0.05 * theirs.max(), f"{theirs} and {tiles[:, 1]}"
    assert abs(theirs.sum() - tiles[:, 1].sum()) < 0.03 * theirs.sum()


@contextmanager
def serving(words: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[str]:
    """A server's address, once it answers. ``words`` start it; its host and port are added."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("w") as out:
        process = subprocess.Popen(
            [*words, "--host", "127.0.0.1", "--port", str(port)],
            env=dict(environment),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(process, address, log)
            yield address
        finally:
            process.terminate()
            process.wait(60)


def _wait_for(process: subprocess.Popen[bytes], address: str, log: Path, seconds: int = 300) -> None:
    for _ in range(seconds):
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{address}/health", timeout=2)
            return
        except OSError:
            time.sleep(1)
    pytest.fail(log.read_text()[-4000:])


def post(address: str, body: Mapping[str, Any]) -> Any:
    """What a server answers to JSON."""
    asked = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=300) as answer:
        return json.load(answer)


def shown_tiles(address: str) -> dict[tuple[str, str], float]:
    """What the endpoint for metrics shows of the model ``small``: by (visited or skipped, phase)."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found = {}
    for kind, labels, value in re.findall(r"^skimattn_tiles_(\w+)_total\{(.*)\} (\S+)$", text, re.MULTILINE):
        assert 'model_name="small"' in labels and 'engine="0"' in labels
        phase = re.search(r'phase="(\w+)"', labels)
        assert phase is not None
        found[kind, phase[1]] = float(value)
    return found
