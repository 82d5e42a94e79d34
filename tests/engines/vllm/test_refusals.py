"""What vLLM cannot have from us stops it when it starts, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .conftest import Models, run


def own(**settings: Any) -> dict[str, Any]:
    return {"additional_config": {"skimattn": settings}}


def test_engines_that_do_not_start(models: Models, tmp_path: Path) -> None:
    asked = {
        r"dtype: expected bfloat16 or float16": {"dtype": "float32"},
        r"patterns.*vision*: expected patterns of layers": own(config={"patterns": {"*vision*": {"threshold": 0.1}}}),
        r"additional_config.skimattn.treshold: expected one of config": own(treshold=0.1),
    }
    jobs = [{"engine": {"model": str(models.cut), **job}, "new": 1, "generate": []} for job in asked.values()]
    for text, found in zip(asked, run(jobs, tmp_path, ours=True), strict=True):
        assert text in found.get("refused", "it started"), found


def test_the_environment_is_read_and_refused_too(models: Models, tmp_path: Path) -> None:
    jobs = [{"engine": {"model": str(models.cut)}, "new": 1, "generate": []}]
    found = run(jobs, tmp_path, ours=True, SKIMATTN_VLLM_CONFIG='{"threshold": 3}')
    assert "threshold.prefill: expected at least 0 and below 1" in found[0]["refused"]
