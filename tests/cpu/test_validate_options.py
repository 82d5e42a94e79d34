"""Wrong masks, numbers, thresholds and outputs: refused by name, and no output was touched."""

from __future__ import annotations

import math

import pytest
import torch
from skimattn import ArgumentError, Params, launch

from tests.helpers.wrong_calls import (
    Wrong,
    batched,
    bf16,
    columns_apart,
    e4m3,
    eight_bit,
    ints,
    misaligned,
    odd_rows,
    paged,
    ragged,
    refuse_case,
    wrong,
)

NAN, INF = math.nan, math.inf
MASKS = [
    wrong("mask_name", batched, "mask", "one of 'full'", "'caudal'", mask="caudal"),
    wrong("mask_bool", batched, "mask", "one of", "True", mask=True),
    wrong(
        "window_unused", batched, "window_size", "masks 'window' and 'chunked' use it", r"\(3, 0\)", window_size=(3, 0)
    ),
    wrong("window_causal", batched, "window_size", "mask 'causal'", r"\(3, 0\)", mask="causal", window_size=(3, 0)),
    wrong("window_int", batched, "window_size", "a pair", "3", mask="window", window_size=3),
    wrong("window_list", batched, "window_size", "a tuple", r"\[3, 0\]", mask="window", window_size=[3, 0]),
    wrong("window_triple", batched, "window_size", "a pair", r"\(1, 2, 3\)", mask="window", window_size=(1, 2, 3)),
    wrong("window_float", batched, "window_size", "an int", "1.5", mask="window", window_size=(1.5, 0)),
    wrong("window_minus2", batched, "window_size", "from -1", "-2", mask="window", window_size=(-2, 0)),
    wrong(
        "window_chunked_minus2",
        batched,
        "window_size",
        "from -1",
        "-2",
        mask="chunked",
        chunk_size=9,
        window_size=(3, -2),
    ),
    wrong("chunk_missing", batched, "chunk_size", "an int", "None", mask="chunked"),
    wrong("chunk_0", batched, "chunk_size", "from 1", "0", mask="chunked", chunk_size=0),
    wrong("chunk_negative", batched, "chunk_size", "from 1", "-5", mask="chunked", chunk_size=-5),
    wrong("chunk_bool", batched, "chunk_size", "an int", "True", mask="chunked", chunk_size=True),
    wrong("chunk_unused", batched, "chunk_size", "mask='chunked' uses it", "64", chunk_size=64),
    wrong("custom_missing", batched, "custom_mask", "since mask is 'custom'", "None", mask="custom"),
    wrong(
        "custom_unused", batched, "custom_mask", "mask='custom' uses it", "a tensor", custom_mask=torch.ones(70, 200)
    ),
    wrong("custom_int", batched, "custom_mask", "bool or torch.uint8", "int32", mask="custom", custom_mask=ints(0)),
    wrong(
        "custom_rows",
        batched,
        "custom_mask",
        r"\[70, max_k\] or \[2, 70, max_k\]",
        r"\[71, 200\]",
        mask="custom",
        custom_mask=torch.ones(71, 200, dtype=torch.bool),
    ),
    wrong(
        "custom_requests",
        batched,
        "custom_mask",
        r"\[2, 4, 70, max_k\] or \[2, 1, 70, max_k\] or \[1, 4, 70, max_k\] or \[1, 1, 70, max_k\]",
        r"\[3, 1, 70, 200\]",
        mask="custom",
        custom_mask=torch.ones(3, 1, 70, 200, dtype=torch.bool),
    ),
    wrong(
        "custom_keys",
        batched,
        "custom_mask",
        "200 columns",
        r"\[70, 208\]",
        mask="custom",
        custom_mask=torch.ones(70, 208, dtype=torch.bool),
    ),
    wrong(
        "custom_ragged_heads",
        ragged,
        "custom_mask",
        r"\[4, 70, max_k\]",
        r"\[2, 70, 200\]",
        mask="custom",
        custom_mask=torch.ones(2, 70, 200, dtype=torch.bool),
    ),
    wrong(
        "custom_ragged_keys",
        ragged,
        "custom_mask",
        "at least 200 columns for 200 keys; max_seqlen_k",
        r"\[70, 110\]",
        mask="custom",
        custom_mask=torch.ones(70, 110, dtype=torch.bool),
    ),
    wrong(
        "custom_bytes",
        batched,
        "custom_mask",
        "28 bytes a row for 200 keys",
        r"\[70, 25\]",
        mask="custom",
        custom_mask=torch.zeros(70, 25, dtype=torch.uint8),
    ),
    wrong(
        "custom_row_stride",
        batched,
        "custom_mask",
        "multiples of 4 bytes",
        "30 bytes",
        mask="custom",
        custom_mask=torch.zeros(70, 30, dtype=torch.uint8),
    ),
    wrong(
        "custom_address",
        batched,
        "custom_mask",
        "multiple of 4 bytes",
        "0x",
        mask="custom",
        custom_mask=torch.zeros(70, 32, dtype=torch.uint8)[:, 1:29],
    ),
]
NUMBERS = [
    wrong("scale_0", batched, "softmax_scale", "above 0", "0.0", softmax_scale=0.0),
    wrong("scale_negative", batched, "softmax_scale", "above 0", "-1.0", softmax_scale=-1.0),
    wrong("scale_nan", batched, "softmax_scale", "finite", "nan", softmax_scale=NAN),
    wrong("scale_inf", batched, "softmax_scale", "finite", "inf", softmax_scale=INF),
    wrong("scale_tiny", batched, "softmax_scale", r"2\*\*-60 to 2\*\*60", "1e-46", softmax_scale=1e-46),
    wrong("scale_huge", batched, "softmax_scale", r"2\*\*-60 to 2\*\*60", "1e\\+39", softmax_scale=1e39),
    wrong("softcap_tiny", batched, "softcap", r"2\*\*-60 to 2\*\*60", "1e-46", softcap=1e-46),
    wrong("scale_str", batched, "softmax_scale", "a finite float", "str '1'", softmax_scale="1"),
    wrong("scale_tensor", batched, "softmax_scale", "a finite float", "Tensor", softmax_scale=torch.ones(())),
    wrong("softcap_negative", batched, "softcap", "0 .off. or more", "-1.0", softcap=-1.0),
    wrong("softcap_nan", batched, "softcap", "finite", "nan", softcap=NAN),
    wrong("softcap_none", batched, "softcap", "a finite float", "None", softcap=None),
    wrong("alibi_shape", batched, "alibi_slopes", r"shape \[4\] or", r"\[3, 4\]", alibi_slopes=torch.zeros(3, 4)),
    wrong("alibi_bf16", batched, "alibi_slopes", "float32", "bfloat16", alibi_slopes=bf16(4)),
    wrong("alibi_float", batched, "alibi_slopes", "torch.Tensor", "float", alibi_slopes=0.5),
    wrong("sinks_shape", batched, "sinks", r"shape \[4\]", r"\[2\]", sinks=torch.zeros(2)),
    wrong("sinks_float64", batched, "sinks", "float32", "float64", sinks=torch.zeros(4).double()),
    wrong("sinks_steps", batched, "sinks", "contiguous", "strides", sinks=torch.zeros(8)[::2]),
    wrong("sinks_meta", batched, "sinks", "on cpu, like q", "meta", sinks=torch.zeros(4).to("meta")),
]
THRESHOLD = "skip_softmax_threshold"
SKIPPING = [
    wrong("threshold_negative", batched, THRESHOLD, "from 0 to 1", "-0.1", skip_softmax_threshold=-0.1),
    wrong("threshold_above_1", batched, THRESHOLD, "from 0 to 1", "1.5", skip_softmax_threshold=1.5),
    wrong("threshold_nan", batched, THRESHOLD, "from 0 to 1", "nan", skip_softmax_threshold=NAN),
    wrong("threshold_bool", batched, THRESHOLD, "a float", "bool True", skip_softmax_threshold=True),
    wrong("threshold_str", batched, THRESHOLD, "a float", "str", skip_softmax_threshold="0.1"),
    wrong("threshold_f64", batched, THRESHOLD, "float32", "float64", skip_softmax_threshold=torch.zeros(2).double()),
    wrong("threshold_0d", batched, THRESHOLD, r"\[2\] or \[2, 4\]", r"\[\]", skip_softmax_threshold=torch.zeros(())),
    wrong("threshold_heads", batched, THRESHOLD, r"\[2, 4\]", r"\[2, 2\]", skip_softmax_threshold=torch.zeros(2, 2)),
    wrong("threshold_device", batched, THRESHOLD, "like q", "meta", skip_softmax_threshold=torch.ones(2).to("meta")),
    wrong("threshold_nans", batched, THRESHOLD, "from 0 to 1", "nan", skip_softmax_threshold=torch.tensor([0.1, NAN])),
    wrong("threshold_2", batched, THRESHOLD, "from 0 to 1", "2.0", skip_softmax_threshold=torch.tensor([0.1, 2.0])),
    wrong("stats_dense", batched, "stats", "None without", "a tensor", skip_softmax_threshold=None),
    wrong("stats_int32", batched, "stats", "int64", "int32", stats=torch.full((2, 4, 2), 7, dtype=torch.int32)),
    wrong("stats_shape", batched, "stats", r"\[2\] or \[2, 2\]", r"\[4, 2\]", stats=torch.full((4, 2), 7)),
    wrong("stats_meta", batched, "stats", "on cpu", "meta", stats=torch.zeros(2, dtype=torch.int64, device="meta")),
    wrong("stats_strides", batched, "stats", "contiguous pairs", "strides", stats=torch.full((2, 2), 7).t()),
    wrong("stats_expanded", batched, "stats", "do not share", "strides", stats=torch.full((2,), 7).expand(2, 2)),
    wrong("map_without_stats", batched, "skip_map", "None without stats", "a tensor", stats=None),
    wrong("map_int8", batched, "skip_map", "uint8", "int8", skip_map=torch.full((2, 4, 2, 2), 7, dtype=torch.int8)),
    wrong("map_rank", batched, "skip_map", r"\[2, 4, groups, tiles\]", r"\[2\]", skip_map=torch.full((2,), 7).byte()),
    wrong(
        "map_groups", batched, "skip_map", "2 groups", r"\[2, 4, 1, 2\]", skip_map=torch.full((2, 4, 1, 2), 7).byte()
    ),
    wrong("map_tiles", batched, "skip_map", "2 tiles", r"\[2, 4, 2, 1\]", skip_map=torch.full((2, 4, 2, 1), 7).byte()),
]
WRITTEN = [
    wrong("out_shape", batched, "out", r"\[2, 70, 4, 64\]", r"\[2, 70, 4, 128\]", out=bf16(2, 70, 4, 128) + 7),
    wrong("out_dtype", batched, "out", "bfloat16", "float32", out=torch.full((2, 70, 4, 64), 7.0)),
    wrong("out_meta", batched, "out", "on cpu, like q", "meta", out=bf16(2, 70, 4, 64).to("meta")),
    wrong("out_strides", batched, "out", "multiples of 16 bytes", "bytes", out=odd_rows(2, 70, 4, 64)),
    wrong("out_columns", batched, "out", "contiguous last", "strides", out=columns_apart(2, 70, 4, 64)),
    wrong("out_misaligned", batched, "out", "multiple of 16 bytes", "0x", out=misaligned(2, 70, 4, 64)),
    wrong("out_expanded", batched, "out", "do not share", "strides", out=bf16(1, 70, 4, 64).expand(2, 70, 4, 64)),
    wrong("out_is_q", batched, "out", "memory of its own", "overlap q", out=lambda c: c["q"]),
    wrong("lse_shape", batched, "lse", r"\[2, 70, 4\]", r"\[2, 4, 70\]", lse=torch.full((2, 4, 70), 7.0)),
    wrong("lse_float64", batched, "lse", "float32", "float64", lse=torch.full((2, 70, 4), 7.0).double()),
    wrong("return_lse_int", batched, "return_lse", "a bool", "1", return_lse=1),
]
EIGHT_BIT = [
    wrong("descale_16_bit", batched, "q_descale", "None with q of bf16", "a tensor", q_descale=torch.ones(1)),
    wrong("descale_float", eight_bit, "k_descale", "a torch.Tensor", "float", k_descale=1.0),
    wrong("descale_dtype", eight_bit, "v_descale", "float32", "float64", v_descale=torch.ones(1).double()),
    wrong("descale_device", eight_bit, "q_descale", "on cpu, like q", "meta", q_descale=torch.ones(1, device="meta")),
    wrong("descale_batch", eight_bit, "k_descale", r"\[\] or \[1\] or \[2, 2\]", r"\[2\]", k_descale=torch.ones(2)),
    wrong("descale_heads_q", eight_bit, "q_descale", r"\[2, 2\]", r"\[2, 4\]", q_descale=torch.ones(2, 4)),
    wrong("descale_zero", eight_bit, "k_descale", "finite values above 0", "0.0", k_descale=torch.zeros(1)),
    wrong("descale_negative", eight_bit, "q_descale", "above 0", "-1.0", q_descale=-torch.ones(2, 2)),
    wrong("descale_nan", eight_bit, "v_descale", "finite", "nan", v_descale=torch.full((), NAN)),
    wrong("descale_inf", eight_bit, "v_descale", "finite", "inf", v_descale=torch.full((), INF)),
    wrong(
        "descale_grad",
        eight_bit,
        "v_descale",
        "no backward",
        "requires_grad",
        v_descale=torch.ones(1, requires_grad=True),
    ),
    wrong("out_8_bit", eight_bit, "out", "bfloat16 or torch.float16", "float8", out=e4m3(2, 70, 4, 64)),
    wrong("out_float32", eight_bit, "out", "bfloat16 or torch.float16", "float32", out=torch.full((2, 70, 4, 64), 7.0)),
    wrong("out_fp16", batched, "out", "torch.bfloat16", "float16", out=torch.full((2, 70, 4, 64), 7.0).half()),
    wrong(
        "map_groups_e4m3",
        lambda: eight_bit() | {"skip_map": torch.zeros(2, 4, 2, 2, dtype=torch.uint8)},
        "skip_map",
        "2 groups of 64 for 70 rows",
        r"\[2, 4, 0, 2\]",
        skip_map=torch.zeros(2, 4, 0, 2, dtype=torch.uint8),
    ),
]
CASES = MASKS + NUMBERS + SKIPPING + WRITTEN + EIGHT_BIT


def test_there_is_one_test_per_way_to_call_it_wrong() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 50


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_wrong_call_is_refused_by_name_and_writes_nothing(case: Wrong) -> None:
    refuse_case(case)


def inside(tensor: torch.Tensor, shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
    """A copy of ``tensor`` and a bf16 tensor of ``shape`` that starts at its last 16 bytes or at its start."""
    size = tensor.numel() * tensor.element_size()
    storage = torch.zeros(size + 2 * shape.numel(), dtype=torch.uint8)
    start = max(0, size - 16) // 16 * 16
    copy = storage[:size].view(tensor.dtype).view(tensor.shape).copy_(tensor)
    return copy, storage[start : start + 2 * shape.numel()].view(torch.bfloat16).view(shape)


@pytest.mark.parametrize(
    "name",
    ["q", "k", "v", "page_table", "cu_seqlens_q", "cu_seqlens_k", "alibi_slopes", "sinks", "q_descale", "v_descale"],
)
def test_out_may_not_overlap_an_input(name: str) -> None:
    call = paged() if name == "page_table" else ragged() if name.startswith("cu_") else batched()
    call = eight_bit() if name.endswith("descale") else call
    call |= {"alibi_slopes": torch.zeros(4), "sinks": torch.zeros(4)} if name in ("alibi_slopes", "sinks") else {}
    call[name], call["out"] = inside(call[name], call["q"].shape)
    with pytest.raises(ArgumentError, match=rf"^out: expected memory of its own \(got .* overlap {name} at"):
        launch(Params(**call))


def test_outputs_may_not_overlap_each_other() -> None:
    call = batched()
    storage = torch.zeros(call["q"].numel() + 2 * 2 * 70 * 4, dtype=torch.bfloat16)
    call["out"] = storage[: call["q"].numel()].view(2, 70, 4, 64)
    call["lse"] = storage[call["q"].numel() - 8 :][: 2 * 2 * 70 * 4].view(torch.float32).view(2, 70, 4)
    with pytest.raises(ArgumentError, match=r"^lse: expected memory of its own .* overlap out at"):
        launch(Params(**call))


def test_out_beside_an_input_in_one_storage_is_fine() -> None:
    call = batched()
    storage = bf16(2, *call["q"].shape)
    call["q"], call["out"] = storage[0], storage[1]
    assert launch(Params(**call)) is call["out"]
