"""SGLang on a CPU with our back end: tokens of its own back end, and what is skipped."""

from __future__ import annotations

import json
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


def section(config: Any, log: Path) -> dict[str, Any]:
    """Arguments of an engine that skips."""
    return {"json_model_override_args": json.dumps({"skimattn": {"config": config, "stat_log": str(log)}})}


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


def test_tokens_of_the_whole_model(runs: Runs) -> None:
    assert_same_tokens(runs.ours[0]["made"][0], runs.base[0]["made"][0])


def test_tokens_of_chunks_and_of_cached_prefixes(runs: Runs) -> None:
    first, second = runs.ours[1]["made"]
    assert_same_tokens(first, runs.base[1]["made"][0])
    assert_same_tokens(second, runs.base[1]["made"][0])
    assert [one["cached"] for one in second] == [2300 // 128 * 128, 4000 // 128 * 128]


def test_skipped_tiles_of_each_phase(runs: Runs) -> None:
    assert_tiles_of_each_phase(runs.logs / "sparse.jsonl", runs.ours[2]["tiles"])


def test_skipped_tiles_are_those_of_transformers(models: Models, runs: Runs) -> None:
    assert_tiles_of_transformers(models, runs.prompts["1100"], runs.logs / "sparse.jsonl")


def test_requests_of_one_batch_have_the_threshold_of_their_phase(runs: Runs) -> None:
    found = read_statistics(runs.logs / "mixed.jsonl")
    mixed = (found.requests["prefill"] > 0) & (found.requests["decode"] > 0)
    assert mixed.sum() >= 2, "batches with both phases"
    decode, prefill = found.tiles["decode"][mixed], found.tiles["prefill"][mixed]
    assert decode[..., 1].sum() > 0 and prefill[..., 0].min() > 0
    assert prefill[..., 1].sum() == 0, "prompts have the threshold 0"
