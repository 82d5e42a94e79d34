"""The faces have flash-attn's signatures, so calls written for it mean the same here; other names say why not."""

from __future__ import annotations

import inspect
import re
from types import ModuleType

import pytest
from skimattn import flash_attn_interface
from skimattn.flash_attn_interface import cute

# Names, order and defaults as flash-attn has them, at commit 0251105a (15 August 2026) of Dao-AILab/flash-attention:
# FlashAttention-3 3.0.0 (hopper/flash_attn_interface.py), FlashAttention-4 4.0.0.beta27 (flash_attn/cute/interface.py).
FA3 = {
    "flash_attn_func": "q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, "
    "v_descale=None, window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, "
    "deterministic=False, sm_margin=0, return_attn_probs=False",
    "flash_attn_qkvpacked_func": "qkv, softmax_scale=None, causal=False, q_descale=None, k_descale=None, "
    "v_descale=None, window_size=(-1, -1), attention_chunk=0, softcap=0.0, deterministic=False, num_heads_q=None, "
    "sm_margin=0, return_attn_probs=False",
    "flash_attn_varlen_func": "q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, "
    "seqused_k=None, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None, "
    "window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, "
    "sm_margin=0, return_attn_probs=False",
    "flash_attn_with_kvcache": "q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, rotary_sin=None, "
    "cache_seqlens=None, cache_batch_idx=None, cache_leftpad=None, page_table=None, cu_seqlens_q=None, "
    "cu_seqlens_k_new=None, max_seqlen_q=None, rotary_seqlens=None, q_descale=None, k_descale=None, v_descale=None, "
    "softmax_scale=None, causal=False, window_size=(-1, -1), attention_chunk=0, softcap=0.0, "
    "rotary_interleaved=True, scheduler_metadata=None, num_splits=0, pack_gqa=None, sm_margin=0, "
    "return_softmax_lse=False",
}
FA4 = {
    "flash_attn_func": "q, k, v, qv=None, gather_kv_indices=None, softmax_scale=None, causal=False, "
    "window_size=(None, None), learnable_sink=None, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, "
    "score_mod=None, score_mod_bwd=None, mask_mod=None, aux_tensors=None, aux_scalars=None, "
    "block_sparse_tensors=None, block_sparse_tensors_bwd=None, return_lse=False",
    "flash_attn_varlen_func": "q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, "
    "max_seqlen_k=None, min_seqlen_k=None, seqused_q=None, seqused_k=None, gather_kv_indices=None, page_table=None, "
    "softmax_scale=None, causal=False, window_size=(None, None), learnable_sink=None, softcap=0.0, num_splits=1, "
    "pack_gqa=None, deterministic=False, score_mod=None, score_mod_bwd=None, mask_mod=None, "
    "block_sparse_tensors=None, aux_tensors=None, aux_scalars=None, return_lse=False, scheduler_metadata=None, "
    "seqlen_k_per_split=None, disable_scheduler_metadata=False",
}
OWN = {
    flash_attn_interface: "dropout_p=0.0, skip_softmax_threshold=None, stats=None",
    cute: "lse_with_sink=True, dropout_p=0.0, skip_softmax_threshold=None, stats=None",
}
FUNCTIONS = [(module, name) for module, names in ((flash_attn_interface, FA3), (cute, FA4)) for name in names]


def parameters(function: object, *, keyword_only: bool) -> str:
    """Names, order and defaults, without annotations."""
    assert callable(function)
    every = inspect.signature(function).parameters.values()
    chosen = [one for one in every if (one.kind is inspect.Parameter.KEYWORD_ONLY) == keyword_only]
    return ", ".join(one.name if one.default is one.empty else f"{one.name}={one.default!r}" for one in chosen)


@pytest.mark.parametrize(("module", "name"), FUNCTIONS)
def test_signatures_are_those_of_flash_attn(module: ModuleType, name: str) -> None:
    wanted = FA4 if module is cute else FA3
    assert parameters(getattr(module, name), keyword_only=False) == wanted[name]


@pytest.mark.parametrize(("module", "name"), FUNCTIONS)
def test_our_own_arguments_come_by_keyword_only(module: ModuleType, name: str) -> None:
    own = OWN[module]
    if name == "flash_attn_with_kvcache":  # which has no dropout anywhere
        own = own.removeprefix("dropout_p=0.0, ")
    assert parameters(getattr(module, name), keyword_only=True) == own


@pytest.mark.parametrize("module", [flash_attn_interface, cute])
def test_every_argument_is_described(module: ModuleType) -> None:
    described = f"{flash_attn_interface.__doc__}{module.__doc__}"
    for name in module.__all__:
        for parameter in inspect.signature(getattr(module, name)).parameters:
            texts = f"{described}{getattr(module, name).__doc__}"
            assert re.search(rf"\b{parameter}\b", texts), f"{module.__name__}.{name}: {parameter}"


def test_what_only_flash_attention_3_has_says_so() -> None:
    wanted = "has no 'flash_attn_with_kvcache': FlashAttention-3 has it"
    with pytest.raises(AttributeError, match=wanted):
        _ = cute.flash_attn_with_kvcache
    assert getattr(cute, "flash_attn_with_kvcache", None) is None  # how others look whether it is there


@pytest.mark.parametrize("module", [flash_attn_interface, cute])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("flash_attn_combine", ": skimattn.merge_states merges states, whose log-sum-exps are [..., H]"),
        ("get_scheduler_metadata", ": a launch needs no metadata"),
        ("_flash_attn_forward", ""),
    ],
)
def test_other_names_are_refused_by_name(module: ModuleType, name: str, reason: str) -> None:
    with pytest.raises(AttributeError) as error:
        getattr(module, name)
    assert str(error.value) == f"module {module.__name__!r} has no {name!r}{reason}"
