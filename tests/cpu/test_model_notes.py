"""``build.py --model``: what a config.json may mean that no kernel follows, and what it leaves out."""

from __future__ import annotations

from typing import Any

import pytest
from skimattn.codegen import model
from skimattn.codegen.errors import ArgumentError

PLAIN = {"hidden_size": 4096, "num_attention_heads": 32, "torch_dtype": "bfloat16"}
NONE = "expected nothing, as no kernel that is chosen here has"
USUAL = {
    "_attn_implementation_autoset": True,
    "alibi": False,
    "attention_bias": True,
    "attention_chunk_size": 8192,
    "attention_dropout": 0.1,
    "attn_config": {"attn_type": "multihead_attention"},
    "attn_logit_softcapping": 50.0,
    "attn_scale": 0.1,
    "bos_token_id": 2,
    "image_token_index": 5,
    "linear_attn_width": 3,
    "mask_token_id": 7,
    "max_window_layers": 28,
    "query_pre_attn_scalar": 256,
    "router_logit_softcapping": 30.0,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "swirl_attn": None,
    "use_attention_sink": True,
}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"index_topk": 2048}, f"index_topk: {NONE} an indexer that chooses the keys of each query (got 2048)"),
        ({"relative_attention": True}, f"relative_attention: {NONE} products with positions"),
        ({"relative_attention_num_buckets": 32}, f"relative_attention_num_buckets: {NONE} learned biases"),
        ({"prefix_lm": True}, f"prefix_lm: {NONE} a prefix that all rows see, which is mask=custom (got True)"),
        ({"attn_config": {"prefix_lm": True}}, f"prefix_lm: {NONE} a prefix"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type: expected one that adds nothing to sc"),
    ],
)
def test_scores_and_masks_that_no_kernel_has_are_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError) as refused:
        model.needed({**PLAIN, **more})
    assert str(refused.value).startswith(words)
    model.needed({**PLAIN, **dict.fromkeys(more)})  # switched off


def said(config: dict[str, Any]) -> list[str]:
    return [line for line in model.needed(config).reasons if line.startswith("not understood: ")]


@pytest.mark.parametrize(("name", "value"), [("attention_window_size", 2048), ("swirl_attn", [1]), ("sparse_top", 4)])
def test_what_sounds_like_attention_and_is_not_known_is_said(name: str, value: object) -> None:
    line = f"not understood: {name}={value!r}; if it changes scores or masks, other kernels are needed"
    assert said({**PLAIN, **USUAL, name: value}) == [line]
    assert said({**PLAIN, "text_config": {**PLAIN, name: value}}) == [line]


def test_what_is_read_or_decides_over_no_kernel_is_not() -> None:
    assert said({**PLAIN, **USUAL}) == []


@pytest.mark.parametrize(
    ("kind", "given", "softcap", "note"),
    [
        ("gemma3_text", {"sliding_window": 1024}, False, "head_dim: not in text_config, so the defaults of gemma3_te"),
        ("gemma2", {}, True, "head_dim, sliding_window, attn_logit_softcapping: not in text_config, so the defaults"),
        ("gemma2", {"attn_logit_softcapping": None}, False, "head_dim, sliding_window: not in text_config, so the de"),
    ],
)
def test_a_part_leaves_out_defaults_of_its_class(kind: str, given: dict[str, Any], softcap: bool, note: str) -> None:
    text = {"model_type": kind, "hidden_size": 2560, "layer_types": ["sliding_attention", "full_attention"], **given}
    need = model.needed({"torch_dtype": "bfloat16", "text_config": text})
    attending = [spec for spec in need.specs if spec.phase != "combine"]
    found = {(spec.head_dim, spec.head_dim_v, spec.mask, spec.softcap) for spec in attending}
    assert found == {(256, 256, mask, softcap) for mask in ("causal", "window")}
    assert any(line.startswith(note) for line in need.reasons), need.reasons
