"""vLLM on a CPU with our back end: tokens of its own back end, and what is skipped."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from skimattn.sparse import read_statistics

from ..serving import (
    PROMPTS,
    SPARSE,
    Runs,
    assert_same_tokens,
    assert_tiles_of_each_phase,
    assert_tiles_of_transformers,
)
from .conftest import Models, run


def section(config: Any, log: Path | None = None) -> dict[str, Any]:
    """Arguments of an engine that skips."""
    own = {"config": config} | ({} if log is None else {"stat_log": str(log)})
    return {"additional_config": {"skimattn": own}}


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


def test_tokens_of_the_whole_model(runs: Runs) -> None:
    assert_same_tokens(runs.ours[0]["made"][0], runs.base[0]["made"][0])


def test_tokens_of_chunks_and_of_cached_prefixes(runs: Runs) -> None:
    first, second, _ = runs.ours[1]["made"]
    assert_same_tokens(first, runs.base[1]["made"][0])
    assert_same_tokens(second, runs.base[1]["made"][0])
    assert [one["cached"] for one in second] == [2300 // 128 * 128, 4000 // 128 * 128 - (4000 % 128 == 0) * 128]


def test_skipped_tiles_of_each_phase(runs: Runs) -> None:
    assert_tiles_of_each_phase(runs.logs / "sparse.jsonl", runs.ours[2]["tiles"])


def test_skipped_tiles_are_those_of_transformers(models: Models, runs: Runs) -> None:
    assert_tiles_of_transformers(models, runs.prompts["1100"], runs.logs / "sparse.jsonl")


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
