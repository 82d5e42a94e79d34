"""Wrong tensors, lengths and pages: the message names argument, wanted and got, and no output was touched."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from skimattn import ArgumentError, Params, launch, pack_mask
from skimattn._call.checks import require_near
from skimattn._call.validate import validate

from tests.helpers.wrong_calls import (
    Call,
    Wrong,
    batched,
    bf16,
    columns_apart,
    e4m3,
    eight_bit,
    fill,
    ints,
    misaligned,
    odd_rows,
    paged,
    ragged,
    refuse_case,
    wrong,
)

TENSORS = [
    wrong("q_none", batched, "q", "torch.Tensor", "NoneType", q=None),
    wrong("k_list", batched, "k", "torch.Tensor", "list", k=lambda _: [1.0]),
    wrong("q_float32", batched, "q", "bfloat16 or torch.float16", "float32", q=torch.zeros(2, 70, 4, 64)),
    wrong("q_e5m2", batched, "q", "or torch.float8_e4m3fn", "e5m2", q=lambda c: c["q"].to(torch.float8_e5m2)),
    wrong("k_16_bit", eight_bit, "k", "float8_e4m3fn, like q", "bfloat16", k=bf16(2, 200, 2, 64)),
    wrong("v_beside_8_bit_k", batched, "v", "float8_e4m3fn, like k", "bfloat16", k=e4m3(2, 200, 2, 64)),
    wrong("v_16_bit", eight_bit, "v", "float8_e4m3fn, like k", "bfloat16", v=bf16(2, 200, 2, 64)),
    wrong("head_dim_72_8_bit", eight_bit, "q", "multiple of 16 from 16 to 256", "72", q=e4m3(2, 70, 4, 72)),
    wrong("v_dim_40_8_bit", eight_bit, "v", "multiple of 16", "40", v=e4m3(2, 200, 2, 40)),
    wrong("k_rows_8_bit", eight_bit, "k", "multiples of 16 bytes", "72 bytes", k=e4m3(2, 200, 2, 72)[..., :64]),
    wrong("k_fp16", batched, "k", "bfloat16, like q", "float16", k=lambda c: c["k"].half()),
    wrong("v_fp16", batched, "v", "bfloat16, like k", "float16", v=lambda c: c["v"].half()),
    wrong("q_meta", batched, "q", "cuda or cpu", "meta", q=lambda c: c["q"].to("meta")),
    wrong("k_other_device", batched, "k", "on cpu, like q", "meta", k=lambda c: c["k"].to("meta")),
    wrong("v_other_device", batched, "v", "on cpu, like q", "meta", v=lambda c: c["v"].to("meta")),
    wrong("q_sparse", batched, "q", "dense", "sparse_coo", q=lambda c: c["q"].to_sparse()),
    wrong("q_grad", batched, "q", "no backward", "requires_grad", q=lambda c: c["q"].requires_grad_()),
    wrong("sinks_grad", batched, "sinks", "no backward", "requires_grad", sinks=torch.zeros(4, requires_grad=True)),
    wrong("q_rank2", batched, "q", "rank 4", r"\[70, 64\]", q=bf16(70, 64)),
    wrong("q_rank5", batched, "q", "rank 4", r"\[1, 2, 70, 4, 64\]", q=bf16(1, 2, 70, 4, 64)),
    wrong("k_rank2", batched, "k", r"rank 4 \[B, Sk, Hkv, D\] or rank 3", r"\[200, 64\]", k=bf16(200, 64)),
    wrong("k_rank3", batched, "cu_seqlens_k", r"int32 \[B \+ 1\], since k has rank 3", "None", k=bf16(200, 2, 64)),
    wrong("v_rank3", batched, "v", "rank 4, like k", r"\[200, 2, 64\]", v=bf16(200, 2, 64)),
    wrong("head_dim_12", batched, "q", "multiple of 8", "12", q=bf16(2, 70, 4, 12)),
    wrong("head_dim_264", batched, "q", "from 8 to 256", "264", q=bf16(2, 70, 4, 264)),
    wrong("head_dim_0", batched, "q", "from 8", "0", q=bf16(2, 70, 4, 0)),
    wrong("v_dim_60", batched, "v", "multiple of 8", "60", v=bf16(2, 200, 2, 60)),
    wrong("k_dim", batched, "k", "head_dim 64, like q", "72", k=bf16(2, 200, 2, 72)),
    wrong("q_columns_apart", batched, "q", "contiguous last dimension", "strides", q=columns_apart(2, 70, 4, 64)),
    wrong("k_odd_rows", batched, "k", "multiples of 16 bytes", "260 bytes", k=odd_rows(2, 200, 2, 64)),
    wrong("v_odd_rows", batched, "v", "multiples of 16 bytes", "260 bytes", v=odd_rows(2, 200, 2, 64)),
    wrong("q_misaligned", batched, "q", "multiple of 16 bytes", "0x", q=misaligned(2, 70, 4, 64)),
    wrong("k_misaligned", batched, "k", "multiple of 16 bytes", "0x", k=misaligned(2, 200, 2, 64)),
    wrong("no_query_heads", batched, "q", "at least one head", "0", q=bf16(2, 70, 0, 64)),
    wrong("no_kv_heads", batched, "k", "at least one head", "0", k=bf16(2, 200, 0, 64), v=bf16(2, 200, 0, 64)),
    wrong("heads_not_multiple", batched, "q", "multiple of k's 3", "4", k=bf16(2, 200, 3, 64), v=bf16(2, 200, 3, 64)),
    wrong("v_heads", batched, "v", r"\[2, 200, 2\].*like k", r"\[2, 200, 4, 64\]", v=bf16(2, 200, 4, 64)),
    wrong("v_keys", batched, "v", r"\[2, 200, 2\].*like k", r"\[2, 199, 2, 64\]", v=bf16(2, 199, 2, 64)),
    wrong("k_batch", batched, "k", "2 requests, like q", "3", k=bf16(3, 200, 2, 64), v=bf16(3, 200, 2, 64)),
]
LENGTHS = [
    wrong("no_cu_q", ragged, "cu_seqlens_q", r"int32 \[B \+ 1\]", "None", cu_seqlens_q=None),
    wrong("no_cu_k", ragged, "cu_seqlens_k", r"int32 \[B \+ 1\]", "None", cu_seqlens_k=None),
    wrong("cu_q_batched", batched, "cu_seqlens_q", "None, since q has rank 4", "a tensor", cu_seqlens_q=ints(0, 70)),
    wrong("cu_k_batched", batched, "cu_seqlens_k", "None, since k has rank 4", "a tensor", cu_seqlens_k=ints(0, 70)),
    wrong("cu_k_batched_k", ragged, "cu_seqlens_k", "None, since k has rank 4", "a tensor", k=bf16(2, 200, 2, 64)),
    wrong(
        "requests_of_ragged_q",
        ragged,
        "k",
        "2 requests, like cu_seqlens_q",
        "3",
        k=bf16(3, 200, 2, 64),
        v=bf16(3, 200, 2, 64),
        cu_seqlens_k=None,
    ),
    wrong("cu_q_int64", ragged, "cu_seqlens_q", "int32", "int64", cu_seqlens_q=lambda c: c["cu_seqlens_q"].long()),
    wrong("cu_q_list", ragged, "cu_seqlens_q", "torch.Tensor", "list", cu_seqlens_q=lambda _: [0, 30, 70]),
    wrong("cu_q_rank", ragged, "cu_seqlens_q", "rank 1", r"\[1, 3\]", cu_seqlens_q=ints(0, 30, 70).view(1, 3)),
    wrong("cu_q_empty", ragged, "cu_seqlens_q", r"\[B \+ 1\]", r"\[0\]", cu_seqlens_q=ints()),
    wrong("cu_q_meta", ragged, "cu_seqlens_q", "on cpu, like q", "meta", cu_seqlens_q=ints(0, 30, 70).to("meta")),
    wrong("cu_k_steps", ragged, "cu_seqlens_k", "contiguous", "strides", cu_seqlens_k=ints(0, 9, 90, 9, 200)[::2]),
    wrong("cu_k_size", ragged, "cu_seqlens_k", r"shape \[3\]", r"\[4\]", cu_seqlens_k=ints(0, 9, 90, 200)),
    wrong("cu_q_total", ragged, "cu_seqlens_q", "offsets from 0 to 70", "0 to 71", cu_seqlens_q=ints(0, 30, 71)),
    wrong("cu_q_start", ragged, "cu_seqlens_q", "offsets from 0", "1 to 70", cu_seqlens_q=ints(1, 30, 70)),
    wrong("cu_k_total", ragged, "cu_seqlens_k", "offsets from 0 to 200", "0 to 190", cu_seqlens_k=ints(0, 90, 190)),
    wrong("cu_k_start", ragged, "cu_seqlens_k", "offsets from 0 to 200", "9 to 200", cu_seqlens_k=ints(9, 90, 200)),
    wrong(
        "cu_k_start_used",
        ragged,
        "cu_seqlens_k",
        "offsets from 0 or more to 200",
        "-1 to 200",
        cu_seqlens_k=ints(-1, 90, 200),
        seqused_k=ints(5, 5),
    ),
    wrong("max_k_used_ragged", ragged, "seqused_k", r"to \[60, 60\]", "61", seqused_k=ints(5, 61), max_seqlen_k=60),
    wrong("cu_k_falls", ragged, "cu_seqlens_k", "never fall", r"\[0, 210, 200\]", cu_seqlens_k=ints(0, 210, 200)),
    wrong("used_shape", batched, "seqused_k", r"shape \[2\]", r"\[3\]", seqused_k=ints(1, 2, 3)),
    wrong("used_int64", batched, "seqused_k", "int32", "int64", seqused_k=torch.tensor([1, 2])),
    wrong("used_beyond", batched, "seqused_k", r"lengths from 0 to \[200, 200\]", "201", seqused_k=ints(1, 201)),
    wrong("used_negative", batched, "seqused_k", "lengths from 0", "-1", seqused_k=ints(-1, 5)),
    wrong("used_ragged", ragged, "seqused_k", r"lengths from 0 to \[90, 110\]", "91", seqused_k=ints(91, 110)),
    wrong("used_q_shape", batched, "seqused_q", r"shape \[2\]", r"\[3\]", seqused_q=ints(1, 2, 3)),
    wrong("used_q_int64", ragged, "seqused_q", "int32", "int64", seqused_q=torch.tensor([1, 2])),
    wrong("used_q_beyond", batched, "seqused_q", r"lengths from 0 to \[70, 70\]", "71", seqused_q=ints(1, 71)),
    wrong("used_q_negative", batched, "seqused_q", "lengths from 0", "-1", seqused_q=ints(-1, 5)),
    wrong("used_q_ragged", ragged, "seqused_q", r"lengths from 0 to \[30, 40\]", "31", seqused_q=ints(31, 40)),
    wrong(
        "used_q_hint", batched, "seqused_q", r"lengths from 0 to \[9, 9\]", "10", seqused_q=ints(1, 10), max_seqlen_q=9
    ),
    wrong("max_q_float", batched, "max_seqlen_q", "an int", "float 7.0", max_seqlen_q=7.0),
    wrong("max_q_negative", ragged, "max_seqlen_q", "an int from 0", "-1", max_seqlen_q=-1),
    wrong("max_q_short", ragged, "max_seqlen_q", "at least 40", "39", max_seqlen_q=39),
    wrong("max_k_huge", batched, "max_seqlen_k", "to 2147483647", "2147483648", max_seqlen_k=1 << 31),
    wrong("max_q_untrue", batched, "max_seqlen_q", "at least 70 or None", "69", max_seqlen_q=69),
    wrong("max_k_untrue", batched, "max_seqlen_k", "at least 200 or None", "199", max_seqlen_k=199),
    wrong("max_k_untrue_paged", paged, "max_seqlen_k", "at least 128 or None", "100", max_seqlen_k=100, seqused_k=None),
    wrong("max_k_short", ragged, "max_seqlen_k", "at least 110", "100", max_seqlen_k=100),
    wrong("max_k_used", paged, "seqused_k", "lengths from 0", "128", max_seqlen_k=120),
]
PAGES = [
    wrong("hnd_unpaged", batched, "kv_layout", "'NHD' without page_table", "'HND'", kv_layout="HND"),
    wrong("layout_name", paged, "kv_layout", "one of 'NHD', 'HND'", "'HDN'", kv_layout="HDN"),
    wrong("k_rank_paged", paged, "k", "rank 4, pages", r"\[256, 2, 64\]", k=bf16(256, 2, 64)),
    wrong("cu_k_paged", paged, "cu_seqlens_k", "None with page_table", "a tensor", cu_seqlens_k=ints(0, 9, 20)),
    wrong(
        "table_keys",
        paged,
        "page_table",
        r"2\*\*30 keys",
        r"\[2, 4194304\]",
        k=bf16(8, 256, 2, 64),
        v=bf16(8, 256, 2, 64),
        page_table=lambda _: torch.empty(1, 1 << 22, dtype=torch.int32).expand(2, -1),
    ),
    wrong("table_int64", paged, "page_table", "int32", "int64", page_table=lambda c: c["page_table"].long()),
    wrong("table_rank", paged, "page_table", r"\[2, max_pages\]", r"\[8\]", page_table=ints(*range(8))),
    wrong("table_batch", paged, "page_table", r"\[2, max_pages\]", r"\[4, 2\]", page_table=ints(*range(8)).view(4, 2)),
    wrong("table_strides", paged, "page_table", "contiguous", "strides", page_table=ints(*range(8)).view(4, 2).t()),
    wrong("page_size_3", paged, "k", "of 1, 2, 4 or 8, or a mul", "3", k=bf16(8, 3, 2, 64), v=bf16(8, 3, 2, 64)),
    wrong("page_size_0", paged, "k", "of 1, 2, 4 or 8, or a mul", "0", k=bf16(8, 0, 2, 64), v=bf16(8, 0, 2, 64)),
    wrong("page_size_40", paged, "k", "multiple of 16", "40", k=bf16(8, 40, 2, 64), v=bf16(8, 40, 2, 64)),
    wrong("page_size_1040", paged, "k", "to 1024", "1040", k=bf16(8, 1040, 2, 64), v=bf16(8, 1040, 2, 64)),
    wrong(
        "page_size_hnd", paged, "k", "multiple of 16", "6", kv_layout="HND", k=bf16(8, 2, 6, 64), v=bf16(8, 2, 6, 64)
    ),
    wrong("page_beyond", paged, "page_table", "from 0 to 7", "8", page_table=ints(0, 1, 2, 3, 4, 5, 6, 8).view(2, 4)),
    wrong("page_negative", paged, "page_table", "from 0 to 7", "-1", page_table=ints(0, -1, *range(2, 8)).view(2, 4)),
    wrong("used_paged", paged, "seqused_k", r"\[128, 128\]", "129", seqused_k=ints(1, 129)),
]
CASES = TENSORS + LENGTHS + PAGES
HUGE_HINTS: Call = {"max_seqlen_q": (1 << 31) - 1, "max_seqlen_k": (1 << 31) - 1}


def test_there_is_one_test_per_way_to_call_it_wrong() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 50


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_wrong_call_is_refused_by_name_and_writes_nothing(case: Wrong) -> None:
    refuse_case(case)


@pytest.mark.parametrize("base", [batched, ragged, paged, eight_bit])
def test_the_base_calls_are_right(base: Callable[[], Call]) -> None:
    call = base()
    fill(call)
    assert launch(Params(**call)) is call["out"]
    assert (call["out"] == 0).all() and (call["stats"] > 7).any() and (call["skip_map"] != 7).any()


@pytest.mark.parametrize("base", [batched, ragged, paged])
def test_hints_above_what_there_is_are_cut(base: Callable[[], Call]) -> None:
    plain, hinted = (validate(Params(**base(), **hints)) for hints in ({}, HUGE_HINTS))
    assert (hinted.len_q, hinted.len_k) == (plain.len_q, plain.len_k)


def test_params_itself() -> None:
    with pytest.raises(ArgumentError, match=r"^params: expected a skimattn.Params \(got dict\)"):
        launch(batched())  # type: ignore[arg-type]


def test_stream_with_cpu_tensors() -> None:
    with pytest.raises(ArgumentError, match=r"^stream: expected None with CPU tensors \(got 5\)"):
        launch(Params(**batched()), stream=5)


def test_without_gradients_a_parameter_is_fine() -> None:
    call = batched()
    call["q"].requires_grad_()
    with torch.no_grad():
        launch(Params(**call))


def test_refusals_also_refuse_packing() -> None:
    with pytest.raises(ArgumentError, match=r"^mask: expected a bool tensor .*float32"):
        pack_mask(torch.zeros(2, 3))


@pytest.mark.parametrize("rows", [0, 5])
@pytest.mark.parametrize("layout", ["batched", "ragged", "paged"])
def test_nothing_to_do_writes_nothing(layout: str, rows: int) -> None:
    """No request, or requests without rows."""
    batch = 0 if rows else 2
    stats = torch.zeros(2, dtype=torch.int64)
    options: Call = {"skip_softmax_threshold": 0.5, "stats": stats, "return_lse": True}
    keys = bf16(batch, 16, 2, 64)
    if layout == "batched":
        call: Call = {"q": bf16(batch, rows, 4, 64), "k": keys, "v": keys}
    elif layout == "paged":
        table = torch.zeros(batch, 1, dtype=torch.int32)
        call = {"q": bf16(batch, rows, 4, 64), "k": bf16(3, 16, 2, 64), "v": bf16(3, 16, 2, 64), "page_table": table}
    else:
        offsets = torch.zeros(batch + 1, dtype=torch.int32)
        call = {"q": bf16(0, 4, 64), "k": bf16(0, 2, 64), "v": bf16(0, 2, 64)}
        call |= {"cu_seqlens_q": offsets, "cu_seqlens_k": offsets}
    out, lse = launch(Params(**call, **options))
    assert out.shape == call["q"].shape and lse.shape == call["q"].shape[:-1]
    assert stats.tolist() == [0, 0]


def test_rows_without_keys_get_zero_and_minus_infinity() -> None:
    sinks = torch.full((4,), 3.0)
    out, lse = launch(Params(bf16(1, 5, 4, 64) + 1, bf16(1, 0, 2, 64), bf16(1, 0, 2, 64), sinks=sinks, return_lse=True))
    assert (out == 0).all() and (lse == -math.inf).all()


@pytest.mark.parametrize(("stride", "fits"), [((1 << 30) - 1, True), (1 << 30, False)])
def test_offsets_that_kernels_hold_in_32_bits(stride: int, fits: bool) -> None:
    tensor = torch.empty(1, device="meta").as_strided((3, 2), (stride, 1))
    if fits:
        require_near("stats", tensor)
        return
    with pytest.raises(ArgumentError, match=r"^stats: expected elements within 2\*\*31 of the first"):
        require_near("stats", tensor)
