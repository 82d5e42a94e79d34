"""The launch plan field by field, in numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from skimattn import Params
from skimattn._call.validate import validate
from skimattn._launch.buffers import Buffers, make_buffers
from skimattn._launch.plan import KernelLaunch, page_box_rows
from skimattn._launch.planner import Planner, make_plan
from skimattn._select import kernels
from skimattn._select.dispatch import spec_of, specs_of
from skimattn.codegen.parameter_block import FIELDS
from skimattn.codegen.tiles import workspace

COUNTER = 0xC0FFEE0
named: set[str] = set()  # fields that some plan of this module gave a value to
MAPS = ("tma_q", "tma_k", "tma_v", "tma_o")


def plan_of(sm_count: int = 132, arch: str = "sm90", **arguments: Any) -> tuple[KernelLaunch, Buffers, Params]:
    """The plan of prefill, had it the whole call; what its numbers leave out stands there as the zero that it is."""
    params = Params(**arguments)
    problem = validate(params)
    buffers = make_buffers(params, problem.out_shape)
    rows = {"prefill": kernels.unbuilt_row(spec_of(problem, arch, "prefill"))}
    (plan,) = make_plan(problem, rows, buffers, sm_count=sm_count, work_counter_address=COUNTER).kernels
    named.update(plan.scalars)
    zeros = {field.name: 0 for field in FIELDS if field.kind != "tensor_map"}
    return replace(plan, scalars=zeros | plan.scalars), buffers, params


def name_what_is_planned_for_both_phases(**arguments: Any) -> None:
    problem = validate(Params(**arguments))
    rows = {phase: kernels.unbuilt_row(spec) for phase, spec in specs_of(problem, "sm90").items()}
    buffers = make_buffers(problem.params, problem.out_shape, Planner(rows, 132).workspace_floats(problem))
    plan = make_plan(problem, rows, buffers, sm_count=132, work_counter_address=COUNTER)
    assert [launch.kernel.phase for launch in plan.kernels] == ["prefill", "decode", "combine"]
    for launch in plan.kernels:
        named.update(launch.scalars)


def bf16(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


def e4m3(*shape: int) -> torch.Tensor:
    return torch.zeros(shape).to(torch.float8_e4m3fn)


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def batched(**more: Any) -> dict[str, Any]:
    return {"q": bf16(2, 100, 8, 72), "k": bf16(2, 300, 2, 72), "v": bf16(2, 300, 2, 64), **more}


def ragged(**more: Any) -> dict[str, Any]:
    lengths = {"cu_seqlens_q": ints(0, 30, 100), "cu_seqlens_k": ints(0, 90, 300)}
    return {"q": bf16(100, 8, 128), "k": bf16(300, 2, 128), "v": bf16(300, 2, 128), **lengths, **more}


def test_every_field_of_the_block_is_planned() -> None:
    """Over calls that give every argument there is."""
    lengths = {"page_table": torch.zeros(2, 20, dtype=torch.int32), "seqused_k": ints(5, 6)}
    paged = {"q": bf16(2, 100, 8, 128), "k": bf16(40, 16, 2, 128), "v": bf16(40, 16, 2, 128), **lengths}
    counted = {"skip_softmax_threshold": torch.zeros(2, 8), "stats": torch.zeros(2, 8, 2, dtype=torch.int64)}
    heads = {"sinks": torch.zeros(8), "alibi_slopes": torch.zeros(8)}
    mask = {"mask": "custom", "custom_mask": torch.ones(2, 8, 100, 300, dtype=torch.bool)}
    skip_map = torch.zeros(2, 8, 2, 3, dtype=torch.uint8)
    eight = {name: e4m3(2, 100, 8 if name == "q" else 2, 64) for name in "qkv"}
    descales = {f"{name}_descale": torch.ones(2, 2) for name in "qkv"}
    named.clear()
    plan, *_ = plan_of(**batched(**counted, **heads, **mask), skip_map=skip_map, return_lse=True)
    plan_of(**paged)
    plan_of(**ragged(seqused_q=ints(1, 2)))
    plan_of(arch="sm100", **eight, **descales)
    assert {field.name for field in FIELDS} - named - set(MAPS) >= {"partial", "parts", "mask", "decode_most_rows"}
    keys = {"k": bf16(4000, 2, 128), "v": bf16(4000, 2, 128), "cu_seqlens_k": ints(0, 2000, 4000)}
    name_what_is_planned_for_both_phases(**{**ragged(), **keys})
    assert named == {field.name for field in FIELDS if field.kind != "tensor_map"}
    assert {field.name for field in FIELDS if field.kind == "tensor_map"} == {*plan.maps, "tma_vt"}
    assert set(transposed_plan(**eight)[-1].maps) == {*plan.maps, "tma_vt"}


def transposed_plan(sm_count: int = 132, **arguments: Any) -> tuple[KernelLaunch, ...]:
    """The plan of prefill, had it the whole call, where V is transposed before it."""
    problem = validate(Params(**arguments))
    rows = {phase: kernels.unbuilt_row(spec) for phase, spec in specs_of(problem, "sm90").items()}
    rows = {phase: rows[phase] for phase in ("prefill", "transpose")}
    buffers = make_buffers(problem.params, problem.out_shape, Planner(rows, sm_count).workspace_floats(problem))
    return make_plan(problem, rows, buffers, sm_count=sm_count, work_counter_address=COUNTER).kernels


@pytest.mark.parametrize(
    ("dims", "layout", "wanted", "box"),
    [  # (bytes of a row, rows, kv heads, places) of 300 keys, of pages of 320
        ((128, 128), "batched", (3 * 128, 128, 2, 3), 128),
        ((96, 80), "batched", (3 * 128, 80, 2, 3), 128),
        ((64, 48), "paged", (3 * 128, 48, 2, 3), 64),
        ((256, 256), "batched", (5 * 128, 128, 2, 3), 128),
        ((256, 64), "batched", (5 * 128, 64, 2, 3), 128),
        ((128, 128), "ragged", ((900 // 128 + 3) * 128, 128, 2, 1), 128),
        ((256, 256), "ragged", ((900 // 64 + 3) * 128, 128, 2, 1), 128),
    ],
)
def test_where_v_lies_transposed(dims: tuple[int, int], layout: str, wanted: tuple[int, ...], box: int) -> None:
    shape = {"batched": (3, 300), "paged": (60, 16), "ragged": (900,)}[layout]
    rows = {"batched": (3, 300), "paged": (3, 300), "ragged": (900,)}[layout]
    call: dict[str, Any] = {"q": e4m3(*rows, 4, dims[0]), "k": e4m3(*shape, 2, dims[0]), "v": e4m3(*shape, 2, dims[1])}
    if layout == "paged":
        call |= {"page_table": torch.zeros(3, 20, dtype=torch.int32), "seqused_k": ints(300, 300, 300)}
    if layout == "ragged":
        offsets = ints(0, 300, 600, 900)
        call |= {"cu_seqlens_q": offsets, "cu_seqlens_k": offsets, "max_seqlen_q": 300, "max_seqlen_k": 300}
    transpose, prefill = transposed_plan(**call)
    assert (transpose.kernel.phase, prefill.kernel.phase) == ("transpose", "prefill")
    assert prefill.shares_block and not transpose.shares_block
    assert transpose.maps == prefill.maps and transpose.scalars == prefill.scalars
    spec = transpose.maps["tma_vt"]
    row, head = wanted[0], wanted[0] * wanted[1]
    assert (spec.dims, spec.strides, spec.box) == (wanted, (row, head, 2 * head), (128, box, 1, 1))
    assert spec.address == transpose.scalars["partial"] and spec.dtype == "e4m3"
    assert transpose.grid == min(4 * 132, 2 * wanted[3] * wanted[0] // 128)


def test_requests_whose_v_does_not_fit_come_in_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "WORKSPACE_BYTES", 2 * 3 * 128 * 128 * 2 + 1000)  # of two requests, and not three
    call = {"q": e4m3(5, 300, 4, 128), "k": e4m3(5, 300, 2, 128), "v": e4m3(5, 300, 2, 128)}
    plan = transposed_plan(**call)
    assert [launch.kernel.phase for launch in plan] == ["transpose", "prefill"] * 3
    rounds = [(launch.scalars["first_request"], launch.scalars["round_requests"]) for launch in plan[::2]]
    assert rounds == [(0, 2), (2, 2), (4, 2)]
    assert {launch.maps["tma_vt"].dims[3] for launch in plan} == {2}
    monkeypatch.setattr(workspace, "WORKSPACE_BYTES", 1)
    assert [launch.scalars["first_request"] for launch in transposed_plan(**call)[::2]] == [0, 1, 2, 3, 4]


def test_maps_of_a_batched_call() -> None:
    plan, buffers, params = plan_of(**batched())
    tile_n = plan.kernel.tile_n
    wanted = {
        "tma_q": (params.q, (72, 100, 8, 2), (1152, 144, 115200), (64, 64, 1, 1)),
        "tma_k": (params.k, (72, 300, 2, 2), (288, 144, 86400), (64, tile_n, 1, 1)),
        "tma_v": (params.v, (64, 300, 2, 2), (256, 128, 76800), (64, tile_n, 1, 1)),
        "tma_o": (buffers.out, (64, 100, 8, 2), (1024, 128, 102400), (64, 64, 1, 1)),
    }
    for name, (tensor, dims, strides, box) in wanted.items():
        spec = plan.maps[name]
        assert (spec.address, spec.dtype) == (tensor.data_ptr(), "bf16")
        assert (spec.dims, spec.strides, spec.box) == (dims, strides, box), name


def test_maps_of_a_ragged_call_have_one_outer_index() -> None:
    plan, *_ = plan_of(**ragged())
    assert plan.maps["tma_q"].dims == (128, 100, 8, 1) and plan.maps["tma_q"].strides[:2] == (2048, 256)
    assert plan.maps["tma_k"].dims == (128, 300, 2, 1) and plan.maps["tma_k"].strides[:2] == (512, 256)
    assert all(spec.strides[2] % 16 == 0 and spec.strides[2] > 0 for spec in plan.maps.values())


def test_maps_of_sm100_take_the_rows_of_its_groups() -> None:
    plan, *_ = plan_of(arch="sm100", **batched())
    assert {name: spec.box for name, spec in plan.maps.items()} == dict.fromkeys(MAPS, (64, 128, 1, 1))
    assert plan_of(**batched())[0].maps["tma_q"].dims == plan.maps["tma_q"].dims
    assert plan.grid == 2 * 8  # one tile of 256 rows for 100


def test_maps_of_8_bit_tensors() -> None:
    call = {name: e4m3(*shape) for name, shape in (("q", (2, 100, 8, 80)), ("k", (2, 300, 2, 80)))}
    plan, buffers, params = plan_of(arch="sm100", **call, v=e4m3(2, 300, 2, 48))
    assert buffers.out.dtype == torch.bfloat16
    wanted = {
        "tma_q": (params.q, "e4m3", (80, 100, 8, 2), (640, 80, 64000), (128, 128, 1, 1)),
        "tma_k": (params.k, "e4m3", (80, 300, 2, 2), (160, 80, 48000), (128, 128, 1, 1)),
        "tma_v": (params.v, "e4m3", (48, 300, 2, 2), (96, 48, 28800), (128, 128, 1, 1)),
        "tma_o": (buffers.out, "bf16", (48, 100, 8, 2), (768, 96, 76800), (64, 128, 1, 1)),
    }
    for name, (tensor, dtype, dims, strides, box) in wanted.items():
        spec = plan.maps[name]
        assert (spec.address, spec.dtype) == (tensor.data_ptr(), dtype), name
        assert (spec.dims, spec.strides, spec.box) == (dims, strides, box), name
    out = torch.zeros(2, 100, 8, 48, dtype=torch.float16)
    assert plan_of(arch="sm100", **call, v=e4m3(2, 300, 2, 48), out=out)[0].maps["tma_o"].dtype == "fp16"


def test_descales_are_passed_with_their_strides() -> None:
    call = {"q": e4m3(2, 9, 8, 64), "k": e4m3(2, 9, 4, 64), "v": e4m3(2, 9, 4, 64)}
    names = [f"{which}_descale" for which in "qkv"]
    plan, *_ = plan_of(arch="sm100", **call)
    assert all(plan.scalars[name] == 0 for name in names)
    given = (torch.ones(()), torch.ones(2, 6)[:, :4], torch.ones(4).expand(2, 4))
    plan, *_ = plan_of(arch="sm100", **call, **dict(zip(names, given, strict=True)))
    assert [plan.scalars[name] for name in names] == [tensor.data_ptr() for tensor in given]
    steps = [strides(plan, f"{name}_stride_batch", f"{name}_stride_head") for name in names]
    assert steps == [[0, 0], [6, 1], [0, 1]]
    plan, *_ = plan_of(arch="sm100", **call, v_descale=torch.ones(1))
    assert strides(plan, "v_descale_stride_batch", "v_descale_stride_head") == [0, 0]


def test_packed_qkv_is_described_in_place() -> None:
    qkv = bf16(2, 100, 3, 4, 128)
    plan, _, _ = plan_of(q=qkv[:, :, 0], k=qkv[:, :, 1], v=qkv[:, :, 2])
    maps = [plan.maps[name] for name in ("tma_q", "tma_k", "tma_v")]
    assert [spec.address - qkv.data_ptr() for spec in maps] == [0, 1024, 2048]
    assert {spec.strides for spec in maps} == {(3072, 256, 307200)}


@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_pages(layout: str) -> None:
    shape = (9, 48, 2, 128) if layout == "NHD" else (9, 2, 48, 128)
    table = torch.zeros(2, 7, dtype=torch.int32)[:, :6]
    plan, _, params = plan_of(
        q=bf16(2, 100, 8, 128), k=bf16(*shape), v=bf16(*shape), page_table=table, kv_layout=layout, mask="causal"
    )
    spec = plan.maps["tma_k"]
    assert (spec.dims, spec.box) == ((128, 48, 2, 9), (64, 16, 1, 1))
    assert spec.strides == ((512, 256, 24576) if layout == "NHD" else (256, 12288, 24576))
    wanted = {"page_size": 48, "page_box_rows": 16, "page_table_stride": 7, "len_k": 288, "heads_kv": 2}
    assert {name: plan.scalars[name] for name in wanted} == wanted
    assert plan.scalars["page_table"] == params.page_table.data_ptr()  # type: ignore[union-attr]


@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_pages_of_one_key(layout: str) -> None:
    kv = bf16(9, 1, 2, 128) if layout == "NHD" else bf16(9, 2, 1, 128)
    table = torch.zeros(2, 300, dtype=torch.int32)
    plan, *_ = plan_of(q=bf16(2, 100, 8, 128), k=kv, v=kv, page_table=table, kv_layout=layout)
    spec = plan.maps["tma_v"]
    assert (spec.dims, spec.box, spec.strides) == ((128, 1, 2, 9), (64, 1, 1, 1), (256, 256, 512))
    assert strides(plan, "page_size", "page_box_rows", "len_k") == [1, 1, 300]


@pytest.mark.parametrize(
    ("page_size", "rows"),
    [(1, 1), (2, 2), (4, 4), (8, 8), (16, 16), (48, 16), (64, 64), (96, 32), (192, 64), (256, 128), (1024, 128)],
)
def test_rows_of_one_copy_from_a_page(page_size: int, rows: int) -> None:
    assert page_box_rows(page_size, 128) == rows
    assert page_box_rows(page_size, 64) == min(rows, 64)
    assert page_box_rows(page_size, 96) == min(rows, 32), "a tile of 96 keys may begin inside a page"


def test_dimensions_of_size_one_get_a_legal_stride() -> None:
    q = torch.zeros(64, dtype=torch.bfloat16).as_strided((1, 1, 1, 64), (3, 5, 7, 1))
    plan, *_ = plan_of(q=q, k=q, v=q)
    for spec in plan.maps.values():
        assert spec.dims == (64, 1, 1, 1)
        assert all(stride % 16 == 0 and stride > 0 for stride in spec.strides)


def test_no_keys_still_give_legal_maps() -> None:
    plan, _, params = plan_of(q=bf16(1, 5, 4, 64), k=bf16(1, 0, 2, 64), v=bf16(1, 0, 2, 64))
    assert plan.maps["tma_k"].dims == (64, 1, 2, 1)
    assert plan.maps["tma_k"].address == params.q.data_ptr()
    assert plan.scalars["len_k"] == 0


def test_pointers_are_null_or_addresses() -> None:
    plan, buffers, _ = plan_of(**batched())
    pointers = {field.name for field in FIELDS if field.kind == "pointer"}
    given = {name for name in pointers if plan.scalars[name]}
    assert given == {"out", "work_counter"}
    assert (plan.scalars["out"], plan.scalars["work_counter"]) == (buffers.out.data_ptr(), COUNTER)
    sinks, slopes = torch.zeros(8), torch.zeros(8)
    plan, buffers, _ = plan_of(**ragged(sinks=sinks, alibi_slopes=slopes, return_lse=True, seqused_k=ints(1, 2)))
    assert (plan.scalars["sinks"], plan.scalars["alibi_slopes"]) == (sinks.data_ptr(), slopes.data_ptr())
    assert buffers.lse is not None and plan.scalars["lse"] == buffers.lse.data_ptr()
    assert all(plan.scalars[name] for name in ("cu_seqlens_q", "cu_seqlens_k", "seqused_k"))


def strides(plan: KernelLaunch, *names: str) -> list[int | float]:
    return [plan.scalars[name] for name in names]


def test_strides_of_outputs_in_elements() -> None:
    out, lse = bf16(2, 8, 100, 64).transpose(1, 2), torch.zeros(8, 2, 100).permute(1, 2, 0)
    plan, *_ = plan_of(**batched(out=out, lse=lse))
    assert strides(plan, "out_stride_batch", "out_stride_row", "out_stride_head") == [51200, 64, 6400]
    assert strides(plan, "lse_stride_batch", "lse_stride_row", "lse_stride_head") == [100, 1, 200]
    plan, *_ = plan_of(**ragged(return_lse=True))
    assert strides(plan, "out_stride_batch", "out_stride_row", "out_stride_head") == [0, 1024, 128]
    assert strides(plan, "lse_stride_batch", "lse_stride_row", "lse_stride_head") == [0, 8, 1]


@pytest.mark.parametrize(
    ("shape", "wanted"), [((2,), [0, 0]), ((2, 2), [1, 0]), ((2, 8, 2), [8, 1])], ids=["all", "batch", "head"]
)
def test_strides_of_stats_in_pairs(shape: tuple[int, ...], wanted: list[int]) -> None:
    stats = torch.zeros(shape, dtype=torch.int64)
    plan, *_ = plan_of(**batched(skip_softmax_threshold=0.5, stats=stats))
    assert strides(plan, "stats_stride_batch", "stats_stride_head") == wanted


def test_strides_of_the_skip_map_in_bytes() -> None:
    skip_map = torch.zeros(2, 8, 4, 10, dtype=torch.uint8)[:, :, :3, :7]
    stats = torch.zeros(2, dtype=torch.int64)
    plan, *_ = plan_of(**batched(skip_softmax_threshold=0.5, stats=stats, skip_map=skip_map))
    names = ("skip_map_stride_batch", "skip_map_stride_head", "skip_map_stride_group")
    assert strides(plan, *names) == [320, 40, 10]


def test_thresholds() -> None:
    plan, *_ = plan_of(**batched())
    assert (plan.scalars["threshold"], plan.scalars["threshold_value"]) == (0, 0.0)
    plan, *_ = plan_of(**batched(skip_softmax_threshold=0.25))
    assert (plan.scalars["threshold"], plan.scalars["threshold_value"]) == (0, 0.25)
    for value, wanted in (
        (torch.zeros(2), [1, 0]),
        (torch.zeros(4)[::2], [2, 0]),
        (torch.zeros(2, 8), [8, 1]),
        (torch.zeros(8).expand(2, 8), [0, 1]),
    ):
        plan, *_ = plan_of(**batched(skip_softmax_threshold=value))
        assert plan.scalars["threshold"] == value.data_ptr()
        assert strides(plan, "threshold_stride_batch", "threshold_stride_head") == wanted


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((100, 300), [0, 0, 40]),
        ((2, 100, 300), [4000, 0, 40]),
        ((2, 8, 100, 300), [32000, 4000, 40]),
        ((2, 1, 100, 300), [4000, 0, 40]),
        ((1, 8, 100, 300), [0, 4000, 40]),
        ((1, 1, 100, 300), [0, 0, 40]),
    ],
)
def test_custom_masks_are_packed(shape: tuple[int, ...], wanted: list[int]) -> None:
    plan, buffers, _ = plan_of(**batched(mask="custom", custom_mask=torch.ones(shape, dtype=torch.bool)))
    assert buffers.custom_mask is not None and plan.scalars["custom_mask"] == buffers.custom_mask.data_ptr()
    assert strides(plan, "custom_stride_batch", "custom_stride_head", "custom_stride_row") == wanted


def test_custom_masks_of_ragged_batches_have_no_batch_stride() -> None:
    packed = torch.zeros(8, 100, 44, dtype=torch.uint8)
    plan, buffers, _ = plan_of(**ragged(mask="custom", custom_mask=packed))
    assert buffers.custom_mask is packed
    assert strides(plan, "custom_stride_batch", "custom_stride_head", "custom_stride_row") == [0, 4400, 44]
    plan, *_ = plan_of(**ragged(mask="custom", custom_mask=packed[0]))
    assert strides(plan, "custom_stride_batch", "custom_stride_head", "custom_stride_row") == [0, 0, 44]


def test_scales() -> None:
    log2e = math.log2(math.e)
    plan, *_ = plan_of(**batched())
    assert plan.scalars["scale_log2"] == pytest.approx(72**-0.5 * log2e)
    assert (plan.scalars["score_scale"], plan.scalars["bias_scale"]) == (0, 0)
    plan, *_ = plan_of(**batched(softmax_scale=0.5, alibi_slopes=torch.zeros(8)))
    assert plan.scalars["scale_log2"] == pytest.approx(0.5 * log2e) and plan.scalars["bias_scale"] == 2.0
    plan, *_ = plan_of(**batched(softmax_scale=0.5, softcap=20.0, alibi_slopes=torch.zeros(8)))
    assert plan.scalars["scale_log2"] == pytest.approx(20 * log2e)
    assert (plan.scalars["score_scale"], plan.scalars["bias_scale"]) == (0.025, 0.05)


def test_masks() -> None:
    plan, *_ = plan_of(**batched(mask="window", window_size=(31, -1)))
    assert strides(plan, "window_left", "window_right", "chunk_size") == [31, -1, 0]
    plan, *_ = plan_of(**batched(mask="window", window_size=(2**31 - 1, 0)))
    assert strides(plan, "window_left", "window_right") == [300, 0]  # diagonal - left must fit 32 bits
    plan, *_ = plan_of(**batched(mask="chunked", chunk_size=48))
    assert strides(plan, "window_left", "window_right", "chunk_size") == [47, 0, 48]


@pytest.mark.parametrize(
    ("window", "chunk", "wanted"),
    [
        ((-1, -1), 48, [47, 0]),  # causal
        ((-1, 0), 48, [47, 0]),
        ((9, 5), 48, [9, 5]),
        ((9, -1), 48, [9, 47]),
        ((-1, 2**31 - 1), 48, [47, 47]),
        ((2**31 - 1, 2**31 - 1), 2**31 - 1, [300, 2**30 - 1]),  # what kernels add up must fit 32 bits
    ],
)
def test_windows_in_chunks_reach_no_farther_than_the_chunk(
    window: tuple[int, int], chunk: int, wanted: list[int]
) -> None:
    plan, *_ = plan_of(**batched(mask="chunked", chunk_size=chunk, window_size=window))
    assert strides(plan, "window_left", "window_right", "chunk_size") == [*wanted, chunk]


def test_grid_is_bounded_by_work_and_by_the_device() -> None:
    plan, *_ = plan_of(**batched())
    tiles = -(-100 // plan.kernel.tile_m)
    assert plan.grid == tiles * 8 * 2
    assert plan_of(sm_count=5, **batched())[0].grid == 5
    plan, *_ = plan_of(sm_count=1000, **ragged())
    assert plan.grid == (-(-100 // plan.kernel.tile_m) + 2) * 8


def shaped(batch: int, len_k: int, heads_kv: int) -> dict[str, torch.Tensor]:
    """Keys and values that claim a size without having it."""
    keys = bf16(1, 1, 1, 128).expand(batch, len_k, heads_kv, 128)
    return {"q": bf16(batch, 1, heads_kv, 128), "k": keys, "v": keys}


def test_heads_in_l2_is_what_fits() -> None:
    """One (request, kv head) of 16384 keys at D = Dv = 128 is 8 MiB: four of them fit 32 MiB."""
    assert plan_of(**shaped(3, 16384, 4))[0].scalars["heads_in_l2"] == 4
    assert plan_of(**shaped(1, 16384, 2))[0].scalars["heads_in_l2"] == 2
    assert plan_of(**shaped(1, 1 << 20, 2))[0].scalars["heads_in_l2"] == 1
    bytewise = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in shaped(1, 1, 9).items()}
    keys = bytewise["k"].expand(3, 16384, 9, 128)
    bytewise = {"q": e4m3(3, 1, 9, 128), "k": keys, "v": keys}
    assert plan_of(arch="sm100", **bytewise)[0].scalars["heads_in_l2"] == 8
    keys = bf16(1, 1, 128).expand(1 << 15, 4, 128)
    offsets = ints(0, 1 << 14, 1 << 15)
    call = {"q": bf16(2, 4, 128), "k": keys, "v": keys, "cu_seqlens_q": ints(0, 1, 2), "cu_seqlens_k": offsets}
    assert plan_of(**call)[0].scalars["heads_in_l2"] == 2


@pytest.mark.parametrize(
    ("batch", "len_k", "heads_kv", "heads_in_l2", "requests"),
    [
        (1000, 16, 8, 8, 32),  # all heads of a warp's requests
        (40, 512, 8, 6, 20),  # 32 would leave 8 of 40: two times 20, 6 of whose heads are 30 MiB
        (64, 8192, 4, 1, 8),  # 8 x 4 MiB: one head of 8 requests
        (3, 1 << 17, 4, 1, 1),  # 64 MiB each
        (5, 0, 4, 4, 5),
    ],
)
def test_requests_of_a_ragged_batch_share_l2_before_heads_do(
    batch: int, len_k: int, heads_kv: int, heads_in_l2: int, requests: int
) -> None:
    """One head of a request of ``len_k`` keys at D = Dv = 128 is 512 bytes times that; 32 MiB are shared."""
    call = shaped(batch, len_k, heads_kv)
    plans = [plan_of(**call, seqused_q=torch.ones(batch, dtype=torch.int32))[0]]
    steps = torch.arange(batch + 1, dtype=torch.int32)
    flat = {"q": call["q"][:, 0], "cu_seqlens_q": steps}
    keys = bf16(1, 1, 128).expand(batch * len_k, heads_kv, 128)
    plans.append(plan_of(**flat, k=call["k"], v=call["v"])[0])
    plans.append(plan_of(**flat, k=keys, v=keys, cu_seqlens_k=steps * len_k)[0])
    for plan in plans:
        assert (plan.scalars["heads_in_l2"], plan.scalars["requests_in_l2"]) == (heads_in_l2, requests)


@pytest.mark.parametrize(("hint", "rows"), [(0, 16), (1, 16), (16, 16), (17, 32), (64, 64), (65, 128), (129, 128)])
def test_a_copy_takes_no_more_keys_than_a_request_can_have(hint: int, rows: int) -> None:
    """Behind the last key of a short request in a ragged batch lie its neighbours': 112 of 128 for one of 16."""
    total = 2 * hint
    keys = {"k": bf16(total, 2, 128), "v": bf16(total, 2, 128), "cu_seqlens_k": ints(0, hint, total)}
    plan, *_ = plan_of(**{**ragged(), **keys}, max_seqlen_k=hint)
    assert plan.scalars["kv_box_rows"] == rows
    assert plan.maps["tma_k"].box[1] == plan.maps["tma_v"].box[1] == rows
