"""What SGLang cannot have from us stops it when it starts, by name."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .conftest import Models, attempt

ASKED: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "page_size: expected a multiple of 16 up to 1024": ({"page_size": 24, "chunked_prefill_size": 240}, {}),
    "patterns.*vision*: expected patterns of layers": (
        {"json_model_override_args": '{"skimattn": {"config": {"patterns": {"*vision*": {"threshold": 0.1}}}}}'},
        {},
    ),
    "SKIMATTN_SGLANG_STAT_LOG: expected a config beside it": ({}, {"SKIMATTN_SGLANG_STAT_LOG": "log.jsonl"}),
}


def test_engines_that_do_not_start(models: Models, tmp_path: Path) -> None:
    def said(index: int) -> str:
        folder = tmp_path / str(index)
        folder.mkdir()
        engine, variables = list(ASKED.values())[index]
        own = {"model_path": str(models.cut), "attention_backend": "skimattn"}
        status, output = attempt([{"engine": own | engine, "new": 1, "generate": []}], folder, **variables)
        assert status != 0 and not (folder / "out.json").exists()
        return output

    with ThreadPoolExecutor(2) as pool:
        for text, output in zip(ASKED, pool.map(said, range(len(ASKED))), strict=True):
            assert text in output, output[-3000:]
