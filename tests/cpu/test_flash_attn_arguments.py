"""What flash-attn's functions do with their arguments here: copies, what has no effect, our own, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from skimattn import ArgumentError, attention
from skimattn.flash_attn_interface import _shared, cute, flash_attn_func, flash_attn_qkvpacked_func
from skimattn.flash_attn_interface import flash_attn_varlen_func as varlen

from tests.helpers.flash_attn import Call, Seen, check, inputs_of, run

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
CASES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "unaligned": lambda x: spread(x, (x.stride(0), x.stride(1), x.stride(2), 1), offset=1),
    "columns apart": lambda x: spread(x, tuple(2 * stride for stride in x.stride())),
    "columns far apart": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "odd rows": lambda x: spread(x, (x.shape[1] * x.shape[2] * 65, x.shape[2] * 65, 65, 1)),
}
READ_IN_PLACE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda x: x,
    "heads first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "padded rows": lambda x: spread(x, (x.shape[1] * x.shape[2] * 72, x.shape[2] * 72, 72, 1)),
    "one head for all": lambda x: x[:, :, :1].expand(-1, -1, x.shape[2], -1),
}


def tensors(seed: int = 0) -> Tensors:
    random = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, rows, heads, 64, generator=random) for rows, heads in ((40, 4), (70, 2), (70, 2)))
    return q.bfloat16(), k.bfloat16(), v.bfloat16()


def spread(x: torch.Tensor, strides: tuple[int, ...], offset: int = 0) -> torch.Tensor:
    """The same numbers with other strides, in a buffer of their own."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, strides, strict=True))
    view = x.new_full((offset + last + 1,), math.nan).as_strided(x.shape, strides, offset)
    return view.copy_(x)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Tensors]:
    """q, k and v of every call as the kernels get them."""
    seen: list[Tensors] = []

    def recording(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **arguments: Any) -> Any:
        seen.append((q, k, v))
        return attention(q, k, v, **arguments)

    monkeypatch.setattr(_shared, "attention", recording)
    return seen


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("lay", CASES.values(), ids=CASES)
def test_what_kernels_cannot_read_is_copied(
    lay: Callable[[torch.Tensor], torch.Tensor], which: int, launched: list[Tensors]
) -> None:
    given = list(tensors())
    wanted = flash_attn_func(*given, causal=True)
    given[which] = lay(given[which])
    with pytest.raises(ArgumentError, match=f"^{'qkv'[which]}: expected"):
        attention(*given, causal=True)  # the face copies, and it alone
    before = given[which].clone()
    assert torch.equal(flash_attn_func(*given, causal=True), wanted)
    assert torch.equal(cute.flash_attn_func(*given, causal=True)[0], wanted)
    assert torch.equal(given[which], before)
    for got in launched[1:]:
        assert [one.data_ptr() == other.data_ptr() for one, other in zip(got, given, strict=True)] == [
            index != which for index in range(3)
        ]


@pytest.mark.parametrize("lay", READ_IN_PLACE.values(), ids=READ_IN_PLACE)
def test_what_kernels_can_read_is_not_copied(
    lay: Callable[[torch.Tensor], torch.Tensor], launched: list[Tensors]
) -> None:
    given = tuple(lay(x) for x in tensors())
    flash_attn_func(*given)
    cute.flash_attn_func(*given)
    for got in launched:
        assert [one.data_ptr() for one in got] == [one.data_ptr() for one in given]
        assert [one.stride() for one in got] == [one.stride() for one in given]


def test_lengths_pages_and_sinks_with_gaps_are_copied() -> None:
    call = Call(
        arguments=(("causal", True),),
        seen=Seen(right=0),
        lens=((3, 70), (40, 20)),
        q_layout="ragged",
        kv_layout="paged",
        seqused=(True, True),
        sink=torch.bfloat16,
        face="fa4",
    )
    inputs = inputs_of(call)
    for name in ("cu_seqlens_q", "seqused_q", "seqused_k", "page_table", "learnable_sink"):
        inputs.passed[name] = torch.stack([inputs.passed[name]] * 2, dim=-1)[..., 0]
        assert inputs.passed[name].stride(-1) == 2
    check(call, inputs, *run(call, inputs))


@pytest.mark.parametrize(
    "arguments",
    [{"num_splits": 0}, {"num_splits": 7}, {"pack_gqa": True}, {"pack_gqa": False}, {"deterministic": True}],
)
def test_what_has_no_effect(arguments: dict[str, Any]) -> None:
    given = tensors()
    assert torch.equal(flash_attn_func(*given, causal=True), flash_attn_func(*given, causal=True, **arguments))
    assert torch.equal(cute.flash_attn_func(*given)[0], cute.flash_attn_func(*given, **arguments)[0])


def test_what_has_no_effect_in_one_of_them() -> None:
    given = tensors()
    assert torch.equal(flash_attn_func(*given), flash_attn_func(*given, sm_margin=8))
    hints = {
        "min_seqlen_k": 1,
        "scheduler_metadata": object(),
        "seqlen_k_per_split": 64,
        "disable_scheduler_metadata": True,
    }
    assert torch.equal(cute.flash_attn_varlen_func(*given)[0], cute.flash_attn_varlen_func(*given, **hints)[0])


@pytest.mark.parametrize("seqused", [None, [11, 20]])
@pytest.mark.parametrize("longest", [40, 41, 1 << 30])
def test_max_seqlen_may_be_larger_than_it_all(longest: int, seqused: list[int] | None) -> None:
    q, k, v = (x.flatten(0, 1) for x in tensors())
    cu_seqlens_q, cu_seqlens_k = (torch.tensor([0, n, 2 * n], dtype=torch.int32) for n in (40, 70))
    used = None if seqused is None else torch.tensor(seqused, dtype=torch.int32)
    wanted = varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, 40, 70, None, used, causal=True)
    got = varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, longest, longest + 30, None, used, causal=True)
    assert torch.equal(got, wanted)


def test_max_seqlen_of_what_is_in_use() -> None:
    q, k, v = (x.flatten(0, 1) for x in tensors())
    offsets = [torch.tensor([0, n, 2 * n], dtype=torch.int32) for n in (40, 70)]
    used = [torch.tensor([9, 3], dtype=torch.int32), torch.tensor([11, 20], dtype=torch.int32)]
    got, wanted = (varlen(q, k, v, *offsets, *most, *used, causal=True) for most in ((9, 20), (40, 70)))
    for first, rows in ((0, 9), (40, 3)):
        assert torch.equal(got[first : first + rows], wanted[first : first + rows])


def test_max_seqlen_in_a_tensor_is_left_out() -> None:
    q, k, v = (x.flatten(0, 1) for x in tensors())
    offsets = [torch.tensor([0, n, 2 * n], dtype=torch.int32) for n in (40, 70)]
    longest = [torch.empty((), dtype=torch.int32, device="meta")] * 2  # whose value cannot be read
    wanted = varlen(q, k, v, *offsets, 40, 70, causal=True)
    assert torch.equal(varlen(q, k, v, *offsets, *longest, causal=True), wanted)
    assert torch.equal(cute.flash_attn_varlen_func(q, k, v, None, *offsets, *longest, causal=True)[0], wanted)


def test_max_seqlen_is_not_looked_at_where_a_shape_says_it() -> None:
    given = tensors()
    assert torch.equal(varlen(*given, None, None, 1, 1), flash_attn_func(*given))
    assert torch.equal(cute.flash_attn_varlen_func(*given, max_seqlen_q=1, max_seqlen_k=1)[0], flash_attn_func(*given))


@pytest.mark.parametrize(
    ("arguments", "mask"),
    [
        ({}, "full"),
        ({"causal": True, "window_size": (-1, 3)}, "causal"),
        ({"window_size": (-1, 0)}, "causal"),
        ({"causal": True, "window_size": (9, -1)}, "window"),
        ({"causal": True, "attention_chunk": 8}, "chunked"),
    ],
)
def test_the_kernel_for_the_mask_computes_it(
    arguments: dict[str, Any], mask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def recording(*tensors: torch.Tensor, mask: str, **others: Any) -> Any:
        asked.append(mask)
        return attention(*tensors, mask=mask, **others)

    monkeypatch.setattr(_shared, "attention", recording)
    flash_attn_func(*tensors(), **arguments)
    assert asked == [mask]


def test_results_without_log_sum_exp() -> None:
    q, k, v = tensors()
    out = flash_attn_func(q, k, v)
    assert isinstance(out, torch.Tensor) and out.shape == q.shape
    again, lse = cute.flash_attn_func(q, k, v)
    assert lse is None and torch.equal(again, out)
    ragged = varlen(q[0], k[0], v[0], *(torch.tensor([0, n], dtype=torch.int32) for n in (40, 70)), 40, 70)
    assert isinstance(ragged, torch.Tensor) and torch.equal(ragged, flash_attn_func(q[:1], k[:1], v[:1])[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_log_sum_exp_with_and_without_the_sink(dtype: torch.dtype) -> None:
    q, k, v = tensors()
    sink = torch.tensor([-1.0, 0.5, 3.0, 60.0], dtype=dtype)
    plain_out, plain = cute.flash_attn_func(q, k, v, causal=True, return_lse=True)
    out, with_sink = cute.flash_attn_func(q, k, v, causal=True, learnable_sink=sink, return_lse=True)
    ours = cute.flash_attn_func(q, k, v, causal=True, learnable_sink=sink, return_lse=True, lse_with_sink=False)
    stated = attention(q, k, v, causal=True, sinks=sink.float(), return_lse=True)
    assert torch.equal(ours[1], plain) and torch.equal(ours[1], stated[1].transpose(1, 2))
    assert torch.equal(ours[0], out) and torch.equal(stated[0], out) and not torch.equal(out, plain_out)
    wanted = torch.logaddexp(plain.double(), sink.double()[:, None])
    assert torch.allclose(with_sink.double(), wanted, rtol=0, atol=1e-5)


def test_log_sum_exp_of_a_row_without_keys_is_the_sink() -> None:
    q, k, v = tensors()
    sink = torch.tensor([-1.0, 0.5, 3.0, 4.0]).bfloat16()
    out, lse = cute.flash_attn_func(q, k[:, :7], v[:, :7], causal=True, learnable_sink=sink, return_lse=True)
    assert torch.equal(lse[:, :, :33], sink.float()[:, None].expand(2, 4, 33))
    assert not out[:, :33].any() and bool((lse[:, :, 33:] > sink.float()[:, None]).all())
    _, without = cute.flash_attn_func(q, k[:, :0], v[:, :0], return_lse=True)
    assert bool((without == -math.inf).all())


def test_queries_keys_and_values_in_one_tensor(launched: list[Tensors]) -> None:
    q, k, v = (x[:, :40] for x in tensors())
    packed = torch.cat([q, k, v], dim=2)
    got, lse = flash_attn_qkvpacked_func(packed, causal=True, num_heads_q=4, return_attn_probs=True)
    wanted, wanted_lse = flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
    assert torch.equal(got, wanted) and torch.equal(lse, wanted_lse)
    stacked = torch.stack([q, q.flip(1), q.flip(2)], dim=2)
    got = flash_attn_qkvpacked_func(stacked, 0.2, window_size=[5, 3], softcap=9.0)
    assert torch.equal(got, flash_attn_func(q, q.flip(1), q.flip(2), 0.2, window_size=(5, 3), softcap=9.0))
    assert launched[0][0].data_ptr() == packed.data_ptr() and launched[2][0].data_ptr() == stacked.data_ptr()


@pytest.mark.parametrize("threshold", [0.5, torch.tensor([0.5, 0.9])], ids=["float", "tensor"])
def test_skipping_and_counting(threshold: float | torch.Tensor) -> None:
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.rand(2, rows, heads, 64, generator=random) - 0.5 for rows, heads in ((70, 4), (300, 2), (300, 2)))
    q[..., 0], k[..., 0], k[:, 0, :, 0] = 6.0, 0.0, 6.0  # key 0 outweighs every other, by exp(4)
    q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
    offsets = [torch.tensor([0, n, 2 * n], dtype=torch.int32) for n in (70, 300)]
    stats = [torch.full((2, 4, 2), 7) for _ in range(3)]
    out, lse = flash_attn_func(q, k, v, skip_softmax_threshold=threshold, stats=stats[0], return_attn_probs=True)
    other, other_lse = cute.flash_attn_func(q, k, v, skip_softmax_threshold=threshold, stats=stats[1], return_lse=True)
    ragged = (x.flatten(0, 1) for x in (q, k, v))
    packed = varlen(*ragged, *offsets, 70, 300, skip_softmax_threshold=threshold, stats=stats[2])
    for counts in stats:  # 2 groups of rows by 3 tiles of keys, of which all but the first are skipped
        assert counts.tolist() == [[[7 + 6, 7 + 4]] * 4] * 2
    kept_out, kept_lse = flash_attn_func(q, k[:, :128], v[:, :128], return_attn_probs=True)
    for got, wanted in ((out, kept_out), (other, kept_out), (packed.view_as(out), kept_out)):
        assert torch.equal(got, wanted)
    assert torch.equal(lse, kept_lse) and torch.equal(other_lse, kept_lse)
    assert not torch.equal(flash_attn_func(q, k, v), out)
