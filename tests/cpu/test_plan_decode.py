"""The kernels of a launch that compute decoded requests: workspace, maps, grids and rounds."""

from __future__ import annotations

import pytest
import torch
from skimattn import Params
from skimattn._call.problem import Problem
from skimattn._call.validate import validate
from skimattn._launch.buffers import Buffers, make_buffers
from skimattn._launch.plan import KernelLaunch
from skimattn._launch.planner import Planner, make_plan

from tests.helpers.decode_plans import COUNTER, MIB, SMS, cut, ints, problem_of, rows_of


def q_box(problem: Problem) -> tuple[int, int]:
    return cut(problem)[-2:]


def launches(problem: Problem, sm_count: int = SMS) -> tuple[tuple[KernelLaunch, ...], Buffers]:
    rows = rows_of(problem)
    floats = Planner(rows, sm_count).workspace_floats(problem)
    buffers = make_buffers(problem.params, problem.out_shape, floats)
    return make_plan(problem, rows, buffers, sm_count=sm_count, work_counter_address=COUNTER).kernels, buffers


@pytest.mark.parametrize(
    ("len_q", "heads", "wanted"),
    [
        (1, (8, 1), (8, 1)),  # all there are
        (1, (1, 1), (1, 1)),
        (8, (8, 1), (8, 8)),
        (5, (12, 1), (12, 5)),
        (9, (8, 1), (8, 8)),  # whole rows that fill a group
        (64, (2, 1), (2, 32)),
        (80, (1, 1), (1, 64)),
        (6, (12, 1), (4, 1)),  # 12 heads do not divide 64: as many as do
        (1, (96, 1), (32, 1)),
        (1, (128, 1), (64, 1)),
        (1, (65, 1), (1, 1)),
    ],
)
def test_a_copy_of_q_fits_a_group_evenly(len_q: int, heads: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert q_box(problem_of(len_q, heads=heads)) == wanted


def test_boxes_of_q_never_cross_a_group() -> None:
    for per_kv in range(1, 257):
        for len_q in range(1, 256 // per_kv + 1):
            heads, rows = q_box(problem_of(len_q, 8192, (per_kv, 1)))
            assert per_kv % heads == 0 and rows <= len_q and (rows == 1 or heads == per_kv)
            packed = per_kv * len_q
            assert heads * rows == packed if packed <= 64 else 64 % (heads * rows) == 0, (per_kv, len_q)


def test_the_kernels_of_a_decode_step() -> None:
    problem = problem_of(2, 6000, (8, 2), 3, mask="causal")
    (first, second), buffers = launches(problem)
    assert [launch.kernel.phase for launch in (first, second)] == ["decode", "combine"]
    assert buffers.workspace is not None and buffers.workspace.numel() == 3 * 2 * 12 * 8 * 132  # 12 leaves, 8 rows
    assert (first.grid, second.grid) == (3 * 2 * 12, 3 * 2 * 8)
    for launch in (first, second):
        scalars = launch.scalars
        assert scalars["partial"] == buffers.workspace.data_ptr() and scalars["out"] == buffers.out.data_ptr()
        assert scalars["work_counter"] == COUNTER
        wanted = {"part_shift": 0, "parts": 12, "groups": 1, "part_rows": 8, "q_box_heads": 4, "q_box_rows": 2}
        wanted |= {"first_request": 0, "round_requests": 3, "requests_in_l2": 3, "mask": 1}
        wanted |= {"decode_more_keys": 1}  # no cache
        wanted |= {"decode_always_rows": 64, "decode_most_rows": 256, "decode_keys_per_row": 16}
        assert {name: scalars[name] for name in wanted} == wanted
        assert (scalars["heads_q"], scalars["heads_kv"], scalars["head_dim_v"], scalars["len_q"]) == (8, 2, 128, 2)
    assert set(first.maps) == {"tma_q", "tma_k", "tma_v"} and second.maps == {}


def test_what_one_cta_computes_is_not_combined() -> None:
    ((launch,), _) = launches(problem_of(len_k=512))
    assert launch.kernel.phase == "decode" and launch.scalars["parts"] == 1
    assert [one.kernel.phase for one in launches(problem_of(len_k=513))[0]] == ["decode", "combine"]


def test_maps_of_a_decode_step() -> None:
    """Q with heads before rows, so that a copy is packed rows; K and V as prefill has them, in decode's tiles."""
    q = torch.zeros(3, 2, 8, 128, dtype=torch.bfloat16)
    kv = torch.zeros(3, 300, 2, 128, dtype=torch.bfloat16)
    (launch, *_), _ = launches(validate(Params(q, kv, kv)))
    spec = launch.maps["tma_q"]
    assert (spec.address, spec.dims, spec.strides) == (q.data_ptr(), (128, 8, 2, 3), (256, 2048, 4096))
    assert spec.box == (64, 4, 2, 1)
    spec = launch.maps["tma_k"]
    assert (spec.dims, spec.strides, spec.box) == ((128, 300, 2, 3), (512, 256, 153600), (64, 64, 1, 1))
    ragged = Params(q.flatten(0, 1), kv, kv, cu_seqlens_q=ints(0, 2, 4, 6), max_seqlen_q=2)
    (launch, *_), _ = launches(validate(ragged))
    spec = launch.maps["tma_q"]
    assert (spec.dims, spec.strides[:2], spec.box) == ((128, 8, 6, 1), (256, 2048), (64, 4, 2, 1))


def test_pages_of_a_decode_step() -> None:
    q, pages = torch.zeros(2, 1, 8, 128).bfloat16(), torch.zeros(50, 16, 2, 128).bfloat16()
    table = torch.zeros(2, 40, dtype=torch.int32)
    (launch, combine), _ = launches(validate(Params(q, pages, pages, page_table=table, mask="causal")))
    assert (launch.kernel.name, launch.maps["tma_k"].box) == (
        "skim_sm90_decode_bf16_d128_causal_dense_paged",
        (64, 16, 1, 1),
    )
    assert combine.kernel.name == "skim_sm90_combine_bf16_d128_full_dense"
    wanted = {"page_size": 16, "page_box_rows": 16, "page_table_stride": 40, "len_k": 640, "parts": 2}
    assert {name: launch.scalars[name] for name in wanted} == wanted


def test_rounds_follow_each_other() -> None:
    problem = problem_of(16, 9000, (32, 2), 600, 256)
    found = cut(problem)
    planned, buffers = launches(problem)
    assert found.rounds > 1 and buffers.workspace is not None
    assert buffers.workspace.numel() == found.workspace_floats <= 64 * MIB
    assert [one.kernel.phase for one in planned] == ["decode", "combine"] * found.rounds
    covered = []
    for first, second in zip(planned[::2], planned[1::2], strict=True):
        spans = [(one.scalars["first_request"], one.scalars["round_requests"]) for one in (first, second)]
        assert spans[0] == spans[1]
        covered += range(int(spans[0][0]), int(sum(spans[0])))
        assert first.scalars["partial"] == second.scalars["partial"] == buffers.workspace.data_ptr()
        assert first.grid == found.ctas == SMS and second.grid == min(8 * SMS, spans[0][1] * 2 * 256)
    assert covered == list(range(600))


def test_grids_are_bounded_by_the_device() -> None:
    (first, second), _ = launches(problem_of(1, 70000, (64, 8), 64), sm_count=10)
    assert (first.grid, second.grid) == (20, 80)  # two CTAs to an SM; eight that combine
    assert launches(problem_of(1, 70000, (64, 8), 64, dim=256), sm_count=10)[0][0].grid == 10


def test_both_phases_share_a_batch_by_the_same_rule() -> None:
    q, kv = torch.zeros(300, 8, 128).bfloat16(), torch.zeros(5000, 2, 128).bfloat16()
    call = Params(q, kv, kv, cu_seqlens_q=ints(0, 1, 300), cu_seqlens_k=ints(0, 2500, 5000), mask="causal")
    (prefill, first, second), _ = launches(validate(call))
    phases = [launch.kernel.phase for launch in (prefill, first, second)]
    assert phases == ["prefill", "decode", "combine"]
    for name in ("decode_more_keys", "decode_always_rows", "decode_most_rows", "decode_keys_per_row"):
        assert prefill.scalars[name] == first.scalars[name] == second.scalars[name] > 0
    assert prefill.scalars["requests_in_l2"] == 2  # requests differ in what they have to do
    assert set(prefill.maps) == {"tma_q", "tma_k", "tma_v", "tma_o"}
    assert prefill.maps["tma_q"].box == (64, 64, 1, 1) and prefill.maps["tma_k"].box == (64, 128, 1, 1)
    only = problem_of(300, 300)
    ((prefill,), buffers) = launches(only)
    assert "decode_always_rows" not in prefill.scalars and buffers.workspace is None  # so all requests are prefill's
