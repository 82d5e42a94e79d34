"""Tiny random models of the families that differ in what they ask of attention, and what they should compute.

What is right is what transformers' eager attention gives in float32 on the same weights; how far bf16 may be off is how
far eager attention in bf16 is.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import transformers

from tests.helpers.rounding import Truth

RELEASE = int(transformers.__version__.split(".")[0])
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WINDOW = 24  # shorter than the sequences of the tests
VOCABULARY = 96
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_BOTH_KINDS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
_EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
_LATENT = {
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
}


@dataclass(frozen=True)
class Family:
    """``model``: the class of transformers, without ForCausalLM; ``changes``: what differs from the common sizes."""

    model: str
    changes: dict[str, Any] = field(default_factory=dict)
    config: str = ""
    without: tuple[str, ...] = ()


FAMILIES = {
    "llama": Family("Llama"),
    "qwen3": Family("Qwen3"),
    "mistral": Family("Mistral", {"sliding_window": WINDOW}),
    "phi3": Family("Phi3", {"num_attention_heads": 4, "sliding_window": None}, without=("head_dim",)),
    "gemma2": Family("Gemma2", {**_BOTH_KINDS, "attn_logit_softcapping": 1.0, "query_pre_attn_scalar": 4}),
    "gemma3": Family("Gemma3", {**_BOTH_KINDS, "query_pre_attn_scalar": 4}, "Gemma3TextConfig"),
    "gpt_oss": Family("GptOss", {**_BOTH_KINDS, **_EXPERTS}),
    "deepseek_v3": Family("DeepseekV3", _LATENT, without=("head_dim",)),
    "llama4": Family(
        "Llama4",
        {
            **_EXPERTS,
            "layer_types": ["chunked_attention", "full_attention"],
            "attention_chunk_size": WINDOW,
            "intermediate_size_mlp": 64,
            "interleave_moe_layer_step": 4,
        },
        "Llama4TextConfig",
    ),
}


@cache
def model_of(family: str, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> transformers.PreTrainedModel:
    """A tiny model; in float32 the same weights, rounded to bf16, with eager attention."""
    if dtype is torch.float32:
        exact = copy.deepcopy(model_of(family, **changes)).float()
        exact.set_attn_implementation("eager")
        return exact
    row = FAMILIES[family]
    sizes = {name: value for name, value in _SIZES.items() if name not in row.without} | row.changes | changes
    config = getattr(transformers, row.config or f"{row.model}Config")(**sizes)
    torch.manual_seed(0)
    model = getattr(transformers, f"{row.model}ForCausalLM")(config).to(DEVICE, dtype).eval()
    model.generation_config.eos_token_id = VOCABULARY  # which no model says
    return model


def tokens_of(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random tokens ``[rows, length]``, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (rows, length), generator=generator).to(DEVICE)


def padded(lengths: list[int], width: int, side: str) -> torch.Tensor:
    """An attention mask ``[rows, width]`` of rows with these many tokens."""
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, slice(width - length, None) if side == "left" else slice(length)] = 1
    return mask.to(DEVICE)


def logits_of(model: transformers.PreTrainedModel, attention: str, tokens: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Float32 logits ``[rows, length, vocabulary]`` of one forward."""
    model.set_attn_implementation(attention)
    logits: torch.Tensor = model(tokens, **inputs).logits
    return logits.float()


def truth_of(family: str, tokens: torch.Tensor, kept: torch.Tensor | None = None, **inputs: Any) -> Truth:
    """The truth of one forward; ``kept`` bool ``[rows, length]``: the logits that count."""
    changes = inputs.pop("changes", {})
    exact = logits_of(model_of(family, torch.float32, **changes), "eager", tokens, **inputs)
    eager = logits_of(model_of(family, **changes), "eager", tokens, **inputs)
    if kept is not None:
        exact, eager = exact[kept], eager[kept]
    return Truth.of(exact, eager)
