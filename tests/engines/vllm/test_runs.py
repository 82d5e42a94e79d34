"""vLLM on a CPU with our back end: tokens of its own back end, and what is skipped."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from skimattn.integrations.transformers import register
from skimattn.sparse import read_statistics, sparsify, summary

from .conftest import Models, run

HEADS, LAYERS = 9, 30
PROMPTS = {"1100": 150, "2300": 1400, "4000": 2100}  # length, and where in the text it begins
SPARSE = {"threshold": {"prefill": 0.05, "decode": 0.02}}


def section(config: Any, log: Path | None = None) -> dict[str, Any]:
    """Arguments of an engine that skips."""
    own = {"config": config} | ({} if log is None else {"stat_log": str(log)})
    return {"additional_config": {"skimattn": own}}


@dataclass(frozen=True)
class Runs:
    """What vLLM's own back end made, what ours made, and where ours logged."""

    prompts: dict[str, list[int]]
    base: list[Any]
    ours: list[Any]
    logs: Path


@pytest.fixture(scope="module")
def runs(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Both at once: each computes in one thread."""
    prompts = {name: models.tokens[first : first + int(name)] for name, first in PROMPTS.items()}
    whole, cut = {"model": str(models.whole)}, {"model": str(models.cut)}
    first, both = [[prompts["1100"]]], [prompts["2300"], prompts["4000"]]
    mixed = [[prompts["1100"][:700], prompts["2300"][:1200]]]
    again = [[(7919 * index) % 40000 + 100 for index in range(120)] * 5]  # behind it the small model repeats itself
    base = [{"engine": whole, "new": 8, "generate": first}, {"engine": cut, "new": 12, "generate": [both]}]
    folders = [tmp_path_factory.mktemp(name) for name in ("base", "ours")]
    logs = folders[1]
    chunks = {"max_num_batched_tokens": 1024, "enable_chunked_prefill": True, "enable_prefix_caching": True}
    small = {"max_num_batched_tokens": 384, "enable_chunked_prefill": True, "enable_prefix_caching": False}
    ours = [
        {"engine": whole, "new": 8, "generate": first},
        {"engine": cut | chunks, "new": 12, "generate": [both, both, again]},
        {"engine": whole | section(SPARSE, logs / "sparse.jsonl"), "new": 4, "generate": first},
    ]
    for phase, threshold in (("decode", {"decode": 0.95}), ("prefill", {"prefill": 0.95})):
        threshold = {"prefill": 0.0, "decode": 0.0, **threshold}
        own = section({"threshold": threshold}, logs / f"{phase}.jsonl")
        ours.append({"engine": cut | small | own, "new": 6, "generate": mixed})
    drafts = {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}}
    own = section({"threshold": 0.0}, logs / "drafts.jsonl")
    ours.append({"engine": cut | drafts | own, "new": 12, "generate": [again]})
    with ThreadPoolExecutor() as pool:
        made = pool.map(lambda asked: run(*asked[:2], ours=asked[2]), [(base, folders[0], False), (ours, logs, True)])
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
    first, second, _ = runs.ours[1]["made"]
    assert_same_tokens(first, runs.base[1]["made"][0])
    assert_same_tokens(second, runs.base[1]["made"][0])
    assert [one["cached"] for one in second] == [2300 // 128 * 128, 4000 // 128 * 128 - (4000 % 128 == 0) * 128]


def visited_by_prefill(length: int) -> int:
    """Tiles of 128 keys that groups of 64 rows see, of all heads of a layer."""
    return HEADS * sum(min(64 * group + 64, length) // -128 * -1 for group in range(-(-length // 64)))


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
    assert runs.ours[2]["tiles"] == shown, "metrics get the same"


def test_skipped_tiles_are_those_of_transformers(models: Models, runs: Runs) -> None:
    """Another library's own caches, masks and projections; only kernels are shared, and bf16 rounds elsewhere."""
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


@pytest.mark.parametrize(("phase", "other"), [("decode", "prefill"), ("prefill", "decode")])
def test_requests_of_one_batch_have_the_threshold_of_their_phase(runs: Runs, phase: Any, other: Any) -> None:
    found = read_statistics(runs.logs / f"{phase}.jsonl")
    mixed = (found.requests["prefill"] > 0) & (found.requests["decode"] > 0)
    assert mixed.sum() >= 2, "batches with both phases"
    tiles = {name: found.tiles[name][mixed] for name in ("prefill", "decode")}
    assert tiles[phase][..., 1].sum() > 0 and tiles[other][..., 0].min() > 0
    assert tiles[other][..., 1].sum() == 0, f"{other} has the threshold 0"


def test_speculative_steps_are_decoded(runs: Runs) -> None:
    assert_same_tokens(runs.ours[5]["made"][0], runs.ours[1]["made"][2])
    found = read_statistics(runs.logs / "drafts.jsonl")
    assert found.requests["prefill"].tolist() == [1, *[0] * (len(found.steps) - 1)]
    assert found.tokens["decode"].max() > 1, "drafts were checked"
    assert not any(found.tiles[phase][..., 1].any() for phase in ("prefill", "decode"))
