"""What ``flash_attn_with_kvcache`` refuses by the names of its own arguments, before anything is appended."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from skimattn import ArgumentError
from skimattn.flash_attn_interface import flash_attn_with_kvcache

from tests.helpers.flash_attn import Seen
from tests.helpers.kvcache import Step, run_of

Call = dict[str, Any]
STEP = Step(seen=Seen(right=0), arguments=(("causal", True),), rows=(3, 3, 3), new=(2, 2, 2))


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


PLAIN = run_of(STEP).passed
PAGED = run_of(STEP.but(page_size=16)).passed
RAGGED = run_of(STEP.but(ragged_q=True, ragged_new=True)).passed
INDEXED = run_of(STEP.but(indexed=True)).passed
PADDED = run_of(STEP.but(leftpad=(1, 2, 3))).passed
TURNED = run_of(STEP.but(rotary_dim=32)).passed
Q, NEW = PLAIN["q"], PLAIN["k"]
CAUSES: list[tuple[Call, Call, str]] = [
    (PLAIN, {"qv": Q}, "qv: expected None, since queries do not meet the values (MLA in latent form) (got torch.bf"),
    (PLAIN, {"q": None}, "q: expected a torch.Tensor (got NoneType)"),
    (PLAIN, {"q": Q[0, 0]}, "q: expected rank 4 [B, Sq, Hq, D] or rank 3 [total_q, Hq, D] (got [4, 64])"),
    (PLAIN, {"q": Q[0]}, "cu_seqlens_q: expected int32 [B + 1] with q of rank 3, None with rank 4 (got None)"),
    (PLAIN, {"cu_seqlens_q": ints(0, 3)}, "cu_seqlens_q: expected int32 [B + 1] with q of rank 3, None with rank 4 (g"),
    (RAGGED, {"cu_seqlens_q": ints()}, "cu_seqlens_q: expected rank 1 [B + 1] (got [0])"),
    (RAGGED, {"cu_seqlens_q": ints(0, 3, 6, 8)}, "cu_seqlens_q: expected offsets from 0 to 9, the number of rows (got"),
    (PLAIN, {"q": Q[..., :3, :]}, "q: expected a number of heads that is a multiple of k_cache's 2 (got 3)"),
    (PLAIN, {"k_cache": Q[0]}, "k_cache: expected shape [3, keys, Hkv, 64] (got [3, 4, 64])"),
    (PLAIN, {"k_cache": lambda x: x[:2]}, "k_cache: expected shape [3, keys, Hkv, 64] (got [2, 64, 2, 64])"),
    (PLAIN, {"k_cache": lambda x: x[..., :56]}, "k_cache: expected shape [3, keys, Hkv, 64] (got [3, 64, 2, 56])"),
    (PLAIN, {"v_cache": lambda x: x[:, :60]}, "v_cache: expected shape [3, 64, 2, Dv] (got [3, 60, 2, 64])"),
    (PLAIN, {"v_cache": lambda x: x.half()}, "v_cache: expected dtype torch.bfloat16 (got torch.float16)"),
    (PLAIN, {"k_cache": lambda x: x.to("meta")}, "k_cache: expected a tensor on cpu, like q (got meta)"),
    (PLAIN, {"k_cache": lambda x: x[:, :0]}, "k_cache: expected at least one key and one head (got [3, 0, 2, 64])"),
    (
        PLAIN,
        {"k_cache": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3)},
        "k_cache: expected a contiguous last dimension (stride 1) (got strides [8192, 1, 64, 128])",
    ),
    (
        PLAIN,
        {"v_cache": lambda x: x.new_zeros(x.numel() + 1)[1:].view_as(x)},
        "v_cache: expected an address that is a multiple of 16 bytes",
    ),
    (PLAIN, {"v": None}, "v: expected new keys and new values, or neither (got None)"),
    (PLAIN, {"k": None}, "k: expected new keys and new values, or neither (got None)"),
    (PLAIN, {"k": NEW.half()}, "k: expected dtype torch.bfloat16 (got torch.float16)"),
    (
        PLAIN,
        {name: lambda x: x.to(torch.float8_e4m3fn) for name in ("k_cache", "v_cache")} | {"k": NEW.half()},
        "k: expected dtype torch.float8_e4m3fn or torch.bfloat16 (got torch.float16)",
    ),
    (PLAIN, {"k": NEW[:2]}, "k: expected shape [3, 2, 2, 64] (got [2, 2, 2, 64])"),
    (PLAIN, {"v": NEW[:, :1]}, "v: expected shape [3, 2, 2, 64] (got [3, 1, 2, 64])"),
    (PLAIN, {"k": NEW[0], "v": NEW[0]}, "k: expected shape [3, S_new, 2, 64] (got [2, 2, 64])"),
    (RAGGED, {"k": NEW, "v": NEW}, "k: expected shape [total_new, 2, 64] (got [3, 2, 2, 64])"),
    (PLAIN, {"k": None, "v": None, "cu_seqlens_k_new": ints(0, 1, 2, 3)}, "cu_seqlens_k_new: expected None without k"),
    (RAGGED, {"cu_seqlens_k_new": ints(0, 2, 6)}, "cu_seqlens_k_new: expected shape [4] (got [3])"),
    (
        RAGGED,
        {"cu_seqlens_k_new": ints(0, 2, 4, 5)},
        "cu_seqlens_k_new: expected offsets from 0 to 6, the number of ro",
    ),
    (RAGGED, {"cu_seqlens_k_new": ints(0, 4, 2, 6)}, "cu_seqlens_k_new: expected offsets that never fall (got [0, 4,"),
    (PLAIN, {"cache_seqlens": None}, "cache_seqlens: expected an int, or int32 [B], since k and v are appended there"),
    (PLAIN, {"cache_seqlens": 1.0}, "cache_seqlens: expected an int (got float 1.0)"),
    (PLAIN, {"cache_seqlens": -1}, "cache_seqlens: expected an int from 0 to 2147483647 (got -1)"),
    (PLAIN, {"cache_seqlens": 63}, "cache_seqlens: expected numbers from 0 to 62 (got [63, 63, 63])"),
    (PLAIN, {"cache_seqlens": ints(1, 2)}, "cache_seqlens: expected shape [3] (got [2])"),
    (PLAIN, {"cache_seqlens": ints(1, 2, 3).long()}, "cache_seqlens: expected dtype torch.int32 (got torch.int64)"),
    (PLAIN, {"cache_seqlens": ints(1, 63, 3)}, "cache_seqlens: expected numbers from 0 to 62 (got [1, 63, 3])"),
    (PLAIN, {"cache_seqlens": ints(1, -1, 3)}, "cache_seqlens: expected numbers from 0 to 62 (got [1, -1, 3])"),
    (RAGGED, {"cache_seqlens": ints(1, 2, 63)}, "cache_seqlens: expected numbers from 0 to [62, 62, 62] (got [1, 2, 6"),
    (PLAIN, {"k": None, "v": None, "cache_seqlens": 65}, "cache_seqlens: expected numbers from 0 to 64 (got [65, 65"),
    (INDEXED, {"cache_batch_idx": ints(0, 1)}, "cache_batch_idx: expected shape [3] (got [2])"),
    (INDEXED, {"cache_batch_idx": ints(0, 1, 5)}, "cache_batch_idx: expected numbers from 0 to 4 (got [0, 1, 5])"),
    (
        INDEXED,
        {
            "k_cache": lambda x: (
                torch.zeros(2 * x.numel()).to(x.dtype).as_strided((5, 65, 2, 64), (8192 + 64, 128, 64, 1))
            )
        }
        | {"v_cache": lambda x: torch.zeros(5, 65, 2, 64).to(x.dtype)},
        "k_cache: expected pages or requests that lie a multiple of 1 keys apart, since no copy is made of a cache",
    ),
    (
        INDEXED,
        {
            "k_cache": lambda x: torch.zeros(5, 66, 2, 64).to(x.dtype),
            "v_cache": lambda x: torch.zeros(5, 80, 2, 64).to(x.dtype)[:, :66],
        },
        "v_cache: expected pages or requests as far apart as those of k_cache (got strides [10240, 128, 64, 1])",
    ),
    (
        PADDED,
        {"cache_leftpad": ints(1, 2, 36)},
        "cache_leftpad: expected numbers from 0 to [52, 9, 35] (got [1, 2, 36])",
    ),
    (PADDED, {"cache_leftpad": ints(-1, 2, 3)}, "cache_leftpad: expected numbers from 0 to [52, 9, 35] (got [-1, 2, 3"),
    (PAGED, {"page_table": lambda x: x[:2]}, "page_table: expected shape [3, max_pages] (got [2, 4])"),
    (PAGED, {"page_table": lambda x: x.long()}, "page_table: expected dtype torch.int32 (got torch.int64)"),
    (
        PAGED,
        {"page_table": lambda x: x * 0 - 1},
        "page_table: expected page numbers from 0 to 14 where keys are append",
    ),
    (PAGED, {"page_table": lambda x: x + 99}, "page_table: expected page numbers from 0 to 14 where keys are appended"),
    (TURNED, {"rotary_sin": None}, "rotary_sin: expected cosines and sines, or neither (got None)"),
    (TURNED, {"rotary_cos": None}, "rotary_cos: expected cosines and sines, or neither (got None)"),
    (TURNED, {"rotary_cos": lambda x: x.float()}, "rotary_cos: expected dtype torch.bfloat16 (got torch.float32)"),
    (TURNED, {"rotary_sin": lambda x: x[:9]}, "rotary_sin: expected shape [67, 16] (got [9, 16])"),
    (
        TURNED,
        {"rotary_cos": lambda x: torch.cat([x] * 3, dim=1)},
        "rotary_cos: expected shape [positions, rotary_dim / 2], rotary_dim to 64 (got [67, 48])",
    ),
    (
        TURNED,
        {"rotary_cos": lambda x: x[:52], "rotary_sin": lambda x: x[:52]},
        "rotary_cos: expected rows for the positions that are used, here 0 to 51 (got 7 to 52)",
    ),
    (TURNED, {"k": None, "v": None}, "rotary_cos: expected None without k and v, since q is rotated beside them only"),
    (PLAIN, {"rotary_seqlens": ints(1, 2, 3)}, "rotary_seqlens: expected None without rotary_cos and rotary_sin"),
    (TURNED, {"rotary_seqlens": ints(1, 2)}, "rotary_seqlens: expected shape [3] (got [2])"),
    # What Params refuses is refused before anything is appended, too.
    (PLAIN, {"softcap": "15"}, "softcap: expected a finite float that is 0 (off) or more (got str '15')"),
    (PLAIN, {"softmax_scale": 0.0}, "softmax_scale: expected a finite float above 0"),
    (PLAIN, {"window_size": 5}, "window_size: expected a pair (left, right), a tuple or a list (got 5)"),
    (PLAIN, {"attention_chunk": -1}, "attention_chunk: expected an int from 0 to 2147483647 (got -1)"),
    (PLAIN, {"k_descale": torch.ones(3, 2)}, "k_descale: expected None with k of bf16 (8-bit tensors use it)"),
    (PLAIN, {"skip_softmax_threshold": 2.0}, "skip_softmax_threshold: expected None, a float from 0 to 1"),
    (PLAIN, {"stats": torch.zeros(2)}, "stats: expected None without skip_softmax_threshold"),
    (RAGGED, {"max_seqlen_q": 2}, "max_seqlen_q: expected at least 3, the longest request in cu_seqlens_q (got 2)"),
]


@pytest.mark.parametrize(
    ("plain", "wrong", "text"), CAUSES, ids=[f"{text.split(' (got')[0][:60]}" for *_, text in CAUSES]
)
def test_refused_by_name_before_anything_is_written(plain: Call, wrong: Call, text: str) -> None:
    given = {name: x.clone() if "_cache" in name else x for name, x in plain.items()}
    for name, value in wrong.items():
        given[name] = value(given[name]) if isinstance(value, Callable) else value
    kept = {name: given[name].clone() for name in ("k_cache", "v_cache") if given[name].device.type == "cpu"}
    with pytest.raises(ArgumentError, match=f"^{re.escape(text)}"):
        flash_attn_with_kvcache(**given)
    for name, before in kept.items():
        assert torch.equal(given[name].contiguous().view(torch.int16), before.contiguous().view(torch.int16))
