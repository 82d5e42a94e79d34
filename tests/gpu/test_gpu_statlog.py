"""Statistics on a GPU: counts arrive without a wait, from CUDA graphs too, and cost next to nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from skimattn import Params, launch

pytest.importorskip(
    "pydantic", reason="skimattn.sparse's configurations need pydantic: pip install 'skimattn[calibrate]'"
)

from skimattn.sparse import StatLog, attention_modules, policy_of, read_statistics, sparsify

from tests.helpers.sparse_models import ToyModel

LAYERS, BATCH, HEADS, KEYS = 4, 2, 4, 1024


def planted(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    make = {"dtype": torch.bfloat16, "device": "cuda"}
    q = torch.randn(BATCH, rows, HEADS, 128, **make)  # type: ignore[arg-type]
    k, v = (torch.randn(BATCH, KEYS, HEADS, 128, **make) for _ in "kv")  # type: ignore[arg-type]
    k.view(BATCH, -1, 2, 128, HEADS, 128)[:, :, 1] *= 0.02  # every second tile lies far below the first one
    return q * 4, k, v


def calls(model: torch.nn.Module, rows: int) -> list[Params]:
    """One of each layer, as an integration makes them."""
    q, k, v = planted(rows)
    phase = "decode" if rows == 1 else "prefill"
    made = []
    for module in attention_modules(model).values():
        policy = policy_of(module)
        assert policy is not None and policy.collector is not None
        rule = policy.rules[phase]  # type: ignore[index]
        threshold = rule.threshold(KEYS, "cuda")
        if isinstance(threshold, torch.Tensor):
            threshold = threshold.expand(BATCH, HEADS).contiguous()
        counts = policy.collector.counts(phase, BATCH, HEADS, q.device)  # type: ignore[arg-type]
        made.append(Params(q, k, v, mask="causal", skip_softmax_threshold=threshold, stats=counts))
    return made


@pytest.mark.parametrize("rows", [1, KEYS])
@pytest.mark.parametrize("threshold", [0.3, [0.1, 0.3, 0.5, 0.9]])
def test_replays_are_counted_step_by_step(tmp_path: Path, rows: int, threshold: object) -> None:
    model = sparsify(ToyModel(LAYERS, HEADS).cuda(), {"threshold": threshold})
    phase = "decode" if rows == 1 else "prefill"
    with StatLog(tmp_path / "x.jsonl", model) as log:
        params = calls(model, rows)
        for one in params:
            launch(one)
        log.step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for one in params:
                launch(one)
        log.step()
        for _ in range(20):
            graph.replay()
            log.step(tokens={phase: BATCH})  # type: ignore[dict-item]
    found = read_statistics(tmp_path / "x.jsonl")
    tiles = found.tiles[phase]  # type: ignore[index]
    assert tiles[0].any() and (tiles[0, :, 0] > 0).all() and (tiles[0, :, 1] > 0).any()
    assert not tiles[1].any(), "a capture runs nothing"
    assert all((step == tiles[0]).all() for step in tiles[2:]) and len(tiles) == 22


def test_a_step_does_not_wait_for_the_device(tmp_path: Path) -> None:
    model = sparsify(ToyModel(LAYERS, HEADS).cuda(), {"threshold": 0.3})
    with StatLog(tmp_path / "x.jsonl", model) as log:
        log.step()
        torch.cuda.synchronize()
        torch.cuda._sleep(2_000_000_000)  # about a second
        began = time.perf_counter()
        for _ in range(10):
            log.step()
        took = time.perf_counter() - began
        assert not torch.cuda.current_stream().query(), "the device was to be busy"
    assert took < 0.1


def test_what_a_step_costs(tmp_path: Path, record_property: object) -> None:
    """Decode of 30 layers in a graph, with the log and without."""
    model = sparsify(ToyModel(30, HEADS).cuda(), {"threshold": 0.3})
    micros = {}
    with StatLog(tmp_path / "x.jsonl", model) as log:
        params = calls(model, 1)
        for one in params:
            launch(one)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for one in params:
                launch(one)
        for name, step in (("without", lambda: None), ("with", log.step), ("again", lambda: None)):
            for _ in range(20):
                graph.replay()
                step()
            torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(200):
                graph.replay()
                step()
            torch.cuda.synchronize()
            micros[name] = (time.perf_counter() - began) / 200 * 1e6
    print({name: round(value, 1) for name, value in micros.items()})
    assert micros["with"] < max(micros["without"], micros["again"]) + 60
