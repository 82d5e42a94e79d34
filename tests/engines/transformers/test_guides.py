"""The guides to commands and to transformers are true: all that stands in them runs, on a tiny model, in its order."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.helpers.guides import GUIDES, OF_ENGINES, run_guide

from .folders import save_text, save_tiny
from .test_evaluate import ROWS

# What a tiny model is asked for in place of the guide's sizes, and targets that it can reach; its losses are noise.
TARGETS = ["--target-prefill", "0.2", "--target-decode", "0.5"]
SMALLER = {
    "--lengths": "512,768",
    "--samples": "2",
    "--new-tokens": "3",
    "--max-new-tokens": "3",
    "--start": "9000",
    "--max-perplexity-change": "50",
    "--limit": "1",
}
FEWER = ["--thresholds", "0.003,0.05,0.5"]
MADE = {
    "calibrate.md": ("found.json", "fit.png", "measured.jsonl", "layers.json", "heads.yaml", "model-own/config.json"),
    "evaluate.md": ("scores.jsonl", "scores.png", "needles.jsonl", "prompts.jsonl"),
    "transformers.md": ("own/config.json", "stats.jsonl", "steps.jsonl"),
}


def smaller(words: list[str]) -> list[str]:
    """The words of a command with other sizes."""
    pairs = zip(["", *words], words, strict=False)
    values = [SMALLER.get(before, word) if word != "0" else word for before, word in pairs]
    if words[0] in ("calibrate", "verify") and "--new-tokens" not in words:
        values += ["--new-tokens", SMALLER["--new-tokens"]]
    if words[0] == "eval":
        values += ["--max-new-tokens", SMALLER["--new-tokens"]]
    if "--target" in values:
        at = values.index("--target")
        values[at : at + 2] = TARGETS
    return values + FEWER if words[0] in ("calibrate", "sparsify") and "--config" not in words else values


@pytest.mark.parametrize("name", OF_ENGINES["transformers"])
def test_code_and_commands_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "evaluate.md" and importlib.util.find_spec("lm_eval") is None:
        pytest.skip("NO LM-EVAL: it is installed with transformers 5.24 only")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    save_tiny(tmp_path / "model")
    save_text(tmp_path / "book.txt")
    if name == "transformers.md":
        (tmp_path / "found.json").write_text('{"threshold": {"prefill": 0.1, "decode": 0.1}}')
    if name == "evaluate.md":
        fit = {"prefill": {"a": 10.0, "b": 6.0}, "decode": {"a": 2.0, "b": 6.0}}
        (tmp_path / "found.json").write_text(json.dumps({"fit": fit, "target_sparsity": 0.3}))
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (guide,) = (one for one in GUIDES if one.name == name)
    run_guide(guide, {}, smaller)
    assert [file for file in MADE[name] if not (tmp_path / file).exists()] == []
