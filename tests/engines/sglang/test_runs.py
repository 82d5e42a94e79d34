"""SGLang on a CPU with our back end: tokens of its own back end, and what is skipped."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimattn.integrations.transformers import register
from skimattn.sparse import read_statistics, sparsify, summary

from .conftest import Models, run

HEADS, LAYERS = 9, 30
PROMPTS = {"1100": 150, "2300": 1400, "4000": 2100}  # length, and where in the text it begins
SPARSE = {"threshold": {"prefill": 0.05, "decode": 0.02}}


def section(config: Any, log: Path) -> dict[str, Any]:
    """Arguments of an engine that skips."""
    return {"json_model_override_args": json.dumps({"skimattn": {"config": config, "stat_log": str(log)}})}


@dataclass(frozen=True)
class Runs:
    """What SGLang's own back end made, what ours made, and where ours logged."""

    prompts: dict[str, list[int]]
    base: list[Any]
    ours: list[Any]
    logs: Path


@pytest.fixture(scope="module")
def runs(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Both at once: each computes in one thread."""
    prompts = {name: models.tokens[first : first + int(name)] for name, first in PROMPTS.items()}
    native = {"attention_backend": "torch_native"}
    skim = {"attention_backend": "skimattn"}
    whole, cut = {"model_path": str(models.whole)}, {"model_path": str(models.cut)}
    first, both = [[prompts["1100"]]], [prompts["2300"], prompts["4000"]]
    mixed = [[prompts["1100"][:700], prompts["2300"][:1200]]]
    folders = [tmp_path_factory.mktemp(name) for name in ("base", "ours")]
    logs = folders[1]
    chunks, small = {"chunked_prefill_size": 1024}, {"chunked_prefill_size": 384, "enable_mixed_chunk": True}
    exact = {"disable_overlap_schedule": True}  # else a step more may be computed than anyone asked for
    base = [
        {"engine": whole | native, "new": 8, "generate": first},
        {"engine": cut | native | chunks, "new": 12, "generate": [both]},
    ]
    ours = [
        {"engine": whole | skim, "new": 8, "generate": first},
        {"engine": cut | skim | chunks, "new": 12, "generate": [both, both]},
        {"engine": whole | skim | exact | section(SPARSE, logs / "sparse.jsonl"), "new": 4, "generate": first},
    ]
    own = section({"threshold": {"prefill": 0.0, "decode": 0.95}}, logs / "mixed.jsonl")
    ours.append({"engine": cut | skim | small | own, "new": 6, "generate": mixed, "best": False})
    with ThreadPoolExecutor(2) as pool:
        made = pool.map(run, (base, ours), folders)
        return Runs(prompts, *made, logs)


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


def test_tokens_of_the_whole_model(runs: Runs) -> None:
    assert_same_tokens(runs.ours[0]["made"][0], runs.base[0]["made"][0])


def test_tokens_of_chunks_and_of_cached_prefixes(runs: Runs) -> None:
    first, second = runs.ours[1]["made"]
    assert_same_tokens(first, runs.base[1]["made"][0])
    assert_same_tokens(second, runs.base[1]["made"][0])
    assert [one["cached"] for one in second] == [2300 // 128 * 128, 4000 // 128 * 128]


def visited_by_prefill(length: int) -> int:
    """Tiles of 128 keys that groups of 64 rows see, of all heads of a layer."""
    return HEADS * sum(-(-min(64 * group + 64, length) // 128) for group in range(-(-length // 64)))


def visited_by_decode(lengths: list[int]) -> int:
    return HEADS * sum(-(-length // 128) for length in lengths)


def test_skipped_tiles_of_each_phase(runs: Runs) -> None:
    found = read_statistics(runs.logs / "sparse.jsonl")
    assert found.layers == tuple(f"model.layers.{index}.self_attn.attn" for index in range(LAYERS))
    prefill, decode = found.tiles["prefill"].sum(0), found.tiles["decode"].sum(0)
    assert prefill[:, 0].tolist() == [visited_by_prefill(1100)] * LAYERS
    assert decode[:, 0].tolist() == [visited_by_decode([1101, 1102, 1103])] * LAYERS
    assert found.requests["decode"].tolist() == [0, 1, 1, 1] and found.tokens["prefill"].tolist() == [1100, 0, 0, 0]
    for tiles, low, high in ((prefill, 0.05, 0.6), (decode, 0.1, 0.8)):
        assert low < tiles[:, 1].sum() / tiles[:, 0].sum() < high
    shown = {"prefill": prefill.sum(0).tolist(), "decode": decode.sum(0).tolist()}
    assert runs.ours[2]["tiles"] == shown, "whoever started the engine gets the same"


def test_skipped_tiles_are_those_of_transformers(models: Models, runs: Runs) -> None:
    """Another library's own caches, masks and projections; only kernels are shared, and bf16 rounds elsewhere."""
    import transformers

    register()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        models.whole, dtype=torch.bfloat16, attn_implementation="skimattn"
    )
    sparsify(model, SPARSE, count=True)
    with torch.no_grad():
        model(torch.tensor([runs.prompts["1100"]]), use_cache=False)
    rows = [row for row in summary(model).rows if row.phase == "prefill"]
    tiles = read_statistics(runs.logs / "sparse.jsonl").tiles["prefill"].sum(0)
    assert [row.visited for row in rows] == tiles[:, 0].tolist()
    theirs = np.array([row.skipped for row in rows])
    assert np.abs(theirs - tiles[:, 1]).max() <= 6 + 0.05 * theirs.max(), f"{theirs} and {tiles[:, 1]}"
    assert abs(theirs.sum() - tiles[:, 1].sum()) < 0.03 * theirs.sum()


def test_requests_of_one_batch_have_the_threshold_of_their_phase(runs: Runs) -> None:
    found = read_statistics(runs.logs / "mixed.jsonl")
    mixed = (found.requests["prefill"] > 0) & (found.requests["decode"] > 0)
    assert mixed.sum() >= 2, "batches with both phases"
    decode, prefill = found.tiles["decode"][mixed], found.tiles["prefill"][mixed]
    assert decode[..., 1].sum() > 0 and prefill[..., 0].min() > 0
    assert prefill[..., 1].sum() == 0, "prompts have the threshold 0"
