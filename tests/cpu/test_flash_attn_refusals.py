"""What flash-attn has and skimattn has not is refused by name, before anything runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from skimattn import ArgumentError
from skimattn.flash_attn_interface import _shared, cute, flash_attn_func, flash_attn_qkvpacked_func
from skimattn.flash_attn_interface import flash_attn_varlen_func as varlen

X = torch.zeros(1, 4, 2, 64, dtype=torch.bfloat16)
PAIR = "a pair (left, right), a tuple or a list"
AT_LEAST_0 = "sides that are None or at least 0: no kernel has windows that leave the diagonal out"
Arguments = dict[str, Any]


def fa3(**arguments: Any) -> Any:
    return flash_attn_func(**{"q": X, "k": X, "v": X} | arguments)


def fa3_varlen(**arguments: Any) -> Any:
    given = {"q": X, "k": X, "v": X, "cu_seqlens_q": None, "cu_seqlens_k": None, "max_seqlen_q": 4, "max_seqlen_k": 4}
    return varlen(**given | arguments)


def fa4(**arguments: Any) -> Any:
    return cute.flash_attn_func(**{"q": X, "k": X, "v": X} | arguments)


def fa4_varlen(**arguments: Any) -> Any:
    return cute.flash_attn_varlen_func(**{"q": X, "k": X, "v": X} | arguments)


FA3, FA4 = (fa3, fa3_varlen), (fa4, fa4_varlen)
EVERY = (*FA3, *FA4)
CAUSES = [
    (EVERY, {"dropout_p": 0.1}, "dropout_p: expected 0.0, since there is no dropout (got 0.1)"),
    (EVERY, {"qv": X}, "qv: expected None, since queries do not meet the values (MLA in latent form) (got torch.bf"),
    (EVERY, {"q": X.numpy}, "q: expected a torch.Tensor (got builtin_function_or_method)"),
    (EVERY, {"v": None}, "v: expected a torch.Tensor (got NoneType)"),
    (EVERY, {"k": X.to_sparse()}, "k: expected a dense (strided) tensor (got torch.sparse_coo)"),
    (EVERY, {"window_size": 5}, f"window_size: expected {PAIR} (got 5)"),
    (EVERY, {"window_size": (1, 2, 3)}, f"window_size: expected {PAIR} (got (1, 2, 3))"),
    (EVERY, {"window_size": (True, 0)}, "window_size: expected an int (got bool True)"),
    (FA3, {"window_size": (None, 0)}, "window_size: expected an int (got NoneType None)"),
    (FA3, {"attention_chunk": -1}, "attention_chunk: expected an int from 0 to 2147483647 (got -1)"),
    (FA3, {"attention_chunk": 2.0}, "attention_chunk: expected an int (got float 2.0)"),
    (FA4, {"window_size": (None, -2)}, f"window_size: expected {AT_LEAST_0} (got (None, -2))"),
    (FA4, {"window_size": (-2, None)}, f"window_size: expected {AT_LEAST_0} (got (-2, None))"),
    (FA4, {"window_size": (-1, 3)}, f"window_size: expected {AT_LEAST_0} (got (-1, 3))"),
    (FA4, {"window_size": (3, -1)}, f"window_size: expected {AT_LEAST_0} (got (3, -1))"),
    (FA4, {"learnable_sink": 1.0}, "learnable_sink: expected a torch.Tensor (got float)"),
    (FA4, {"learnable_sink": torch.zeros(1, 2)}, "learnable_sink: expected shape [2] (got [1, 2])"),
    (FA4, {"learnable_sink": torch.zeros(3)}, "learnable_sink: expected shape [2] (got [3])"),
    (
        FA4,
        {"learnable_sink": torch.zeros(2, device="meta")},
        "learnable_sink: expected a tensor on cpu, like q (got meta)",
    ),
    (
        FA4,
        {"learnable_sink": torch.zeros(2).double()},
        "learnable_sink: expected dtype torch.float16 or torch.bfloat16",
    ),
    (
        FA4,
        {"score_mod": max},
        "score_mod: expected None, since there are no functions of scores (skimattn.Params takes",
    ),
    (FA4, {"score_mod_bwd": max}, "score_mod_bwd: expected None, since there is no backward pass (got builtin_func"),
    (FA4, {"mask_mod": max}, "mask_mod: expected None, since there are no functions of masks (skimattn.Params takes a"),
    (
        FA4,
        {"aux_tensors": [X]},
        "aux_tensors: expected None, since there are no functions of scores or masks (got list",
    ),
    (FA4, {"aux_scalars": (1,)}, "aux_scalars: expected None, since there are no functions of scores or masks (got tu"),
    (FA4, {"block_sparse_tensors": X}, "block_sparse_tensors: expected None, since there are no lists of key blocks"),
    (FA4, {"gather_kv_indices": X}, "gather_kv_indices: expected None, since keys are not gathered by index (got"),
    ((fa4,), {"block_sparse_tensors_bwd": X}, "block_sparse_tensors_bwd: expected None, since there is no backward"),
    (EVERY, {"softcap": float("nan")}, "softcap: expected a finite float that is 0 (off) or more (got nan)"),
    (EVERY, {"softcap": "15"}, "softcap: expected a finite float that is 0 (off) or more (got str '15')"),
    (EVERY, {"q": X[0, 0]}, "q: expected rank 4 [B, Sq, Hq, D] or rank 3 [total_q, Hq, D] (got [2, 64])"),
    ((fa3_varlen, fa4_varlen), {"q": X[0]}, "cu_seqlens_q: expected int32 [B + 1], since q has rank 3"),
    ((fa3_varlen, fa4_varlen), {"seqused_k": [4]}, "seqused_k: expected a torch.Tensor (got list)"),
]


def calls() -> list[Any]:
    return [
        pytest.param(function, arguments, text, id=f"{function.__name__}-{text.split(' (got')[0][:60]}")
        for functions, arguments, text in CAUSES
        for function in functions
    ]


@pytest.mark.parametrize(("function", "arguments", "text"), calls())
def test_refused_by_name(
    function: Callable[..., Any], arguments: Arguments, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not text.startswith(("softcap", "q: expected rank", "cu_seqlens", "seqused")):  # which Params refuses
        monkeypatch.setattr(_shared, "attention", None)
    with pytest.raises(ArgumentError, match=f"^{re.escape(text)}"):
        function(**arguments, **({"return_lse": True} if function in FA4 else {"return_attn_probs": True}))


@pytest.mark.parametrize("function", EVERY)
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_backward_is_refused_where_it_would_be_recorded(function: Callable[..., Any], name: str) -> None:
    wanted = function()
    given = {name: X.clone().requires_grad_()}
    with pytest.raises(ArgumentError, match=rf"^{name}: expected no requires_grad, since there is no backward pass"):
        function(**given)
    with torch.no_grad():
        got = function(**given)
    assert torch.equal(got[0], wanted[0])


def test_backward_of_the_sink_is_refused() -> None:
    sink = torch.zeros(2, requires_grad=True)
    with pytest.raises(ArgumentError, match=r"^learnable_sink: expected no requires_grad"):
        fa4(learnable_sink=sink)


def test_empty_lists_for_functions_that_are_not_there() -> None:
    assert torch.equal(fa4(aux_scalars=(), aux_tensors=[])[0], fa4()[0])


def test_softcap_that_is_not_above_0_is_off() -> None:
    x = torch.randn(1, 4, 2, 64, generator=torch.Generator().manual_seed(0)).bfloat16() * 5
    capped = fa3(q=x, k=x, v=x, softcap=1.0)
    for off in (0, -1.0):
        assert torch.equal(fa3(q=x, k=x, v=x, softcap=off), fa3(q=x, k=x, v=x))
        assert not torch.equal(fa3(q=x, k=x, v=x, softcap=off), capped)
    assert torch.equal(fa4(q=x, k=x, v=x, softcap=None)[0], fa3(q=x, k=x, v=x))


@pytest.mark.parametrize(
    ("shape", "heads", "text"),
    [
        (
            (1, 4, 2, 2, 64),
            None,
            "qkv: expected shape [B, S, 3, H, D] or [B, S, Hq + 2 * Hkv, D] (got [1, 4, 2, 2, 64])",
        ),
        ((4, 3, 2), None, "qkv: expected shape [B, S, 3, H, D] or [B, S, Hq + 2 * Hkv, D] (got [4, 3, 2])"),
        ((1, 4, 6, 64), None, "num_heads_q: expected an int (got NoneType None)"),
        ((1, 4, 6, 64), 3, "num_heads_q: expected Hq of 6 = Hq + 2 * Hkv heads (got 3)"),
        ((1, 4, 6, 64), 6, "num_heads_q: expected Hq of 6 = Hq + 2 * Hkv heads (got 6)"),
        ((1, 4, 6, 64), 8, "num_heads_q: expected Hq of 6 = Hq + 2 * Hkv heads (got 8)"),
    ],
)
def test_packed_tensors_that_cannot_be_taken_apart(shape: tuple[int, ...], heads: int | None, text: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{re.escape(text)}$"):
        flash_attn_qkvpacked_func(torch.zeros(shape, dtype=torch.bfloat16), num_heads_q=heads)


def test_what_is_packed_is_a_tensor() -> None:
    with pytest.raises(ArgumentError, match=r"^qkv: expected a torch.Tensor \(got list\)$"):
        flash_attn_qkvpacked_func([X])
