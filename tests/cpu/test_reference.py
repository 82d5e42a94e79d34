"""The block-exact reference on inputs small enough to work out by hand, and across layouts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from skimattn import Params, launch, pack_mask
from skimattn._call.validate import validate
from skimattn._launch.buffers import make_buffers
from skimattn._select import kernels
from skimattn._select.dispatch import spec_of
from skimattn.codegen.metadata import Kernel
from skimattn.reference import attention as module
from skimattn.reference import prefill

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def run(params: Params, **changes: object) -> torch.Tensor:
    """The reference of the call's prefill kernel with some of its geometry changed."""
    problem = validate(params)
    kernel = replace(kernels.unbuilt_row(spec_of(problem, "sm90")), **changes)  # type: ignore[arg-type]
    buffers = make_buffers(params, problem.out_shape)
    module.attention(problem, module.Kernels(prefill=kernel), buffers)
    return buffers.out


def planted(
    tile_maxima: list[float], rows: int = 1, tile_n: int = 16
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One head whose row scores (at scale 1) are ``tile_maxima[t]`` all over tile t, and values that name the tile."""
    q = torch.zeros(1, rows, 1, 64)
    q[..., 0] = 1
    k, v = (torch.zeros(1, tile_n * len(tile_maxima), 1, 64) for _ in "kv")
    for tile, score in enumerate(tile_maxima):
        k[0, tile * tile_n : (tile + 1) * tile_n, 0, 0] = score
        v[0, tile * tile_n : (tile + 1) * tile_n, 0, tile] = 1
    return q.bfloat16(), k.bfloat16(), v.bfloat16()


@pytest.mark.parametrize(
    ("order", "maxima", "wanted"),
    [
        ("reverse", [0, 0, 0, 0], [1, 1, 1, 1]),
        ("reverse", [8, 0, 0, 0], [1, 1, 1, 1]),  # the highest tile comes last: too late to skip anything
        ("reverse", [0, 0, 0, 8], [2, 2, 2, 1]),
        ("reverse", [0, 8, 0, 4], [2, 1, 2, 1]),
        ("reverse", [4, 8, 0, 4], [2, 1, 2, 1]),
        ("sink_first", [8, 0, 0, 0], [1, 2, 2, 2]),
        ("sink_first", [0, 0, 0, 8], [1, 2, 2, 1]),
        ("sink_first", [4, 8, 0, 4], [1, 1, 2, 1]),
    ],
)
def test_which_tiles_are_skipped(order: str, maxima: list[float], wanted: list[int]) -> None:
    """At a threshold of exp(-2) a tile is skipped when it lies more than 2 below the maximum of those kept so far."""
    q, k, v = planted(maxima)
    stats, skip_map = torch.zeros(2, dtype=torch.int64), torch.zeros(1, 1, 1, 4, dtype=torch.uint8)
    options = {"skip_softmax_threshold": math.exp(-2), "stats": stats, "skip_map": skip_map}
    out = run(Params(q, k, v, softmax_scale=1.0, **options), tile_n=16, order=order)  # type: ignore[arg-type]
    assert skip_map.flatten().tolist() == wanted
    assert stats.tolist() == [4, wanted.count(2)]
    weights = [math.exp(score) if mark == 1 else 0.0 for score, mark in zip(maxima, wanted, strict=True)]
    assert out[0, 0, 0, :4].tolist() == pytest.approx([weight / sum(weights) for weight in weights], abs=4e-3)


@pytest.mark.parametrize(("threshold", "skipped"), [(0.25, False), (0.2500001, True), (1.0, True), (0.0, False)])
def test_the_rule_is_strict(threshold: float, skipped: bool) -> None:
    """With scale ln(2) a difference of 2 is a factor of exactly 4: equal to the threshold is not below it."""
    q, k, v = planted([0, 2])
    skip_map = torch.zeros(1, 1, 1, 2, dtype=torch.uint8)
    stats = torch.zeros(2, dtype=torch.int64)
    scale = torch.tensor(math.log(2)).item()
    call = Params(q, k, v, softmax_scale=scale, skip_softmax_threshold=threshold, stats=stats, skip_map=skip_map)
    unit = torch.tensor(scale * math.log2(math.e), dtype=torch.float32).item()
    assert unit == 1.0
    run(call, tile_n=16, order="reverse")
    assert (skip_map.flatten().tolist()[0] == 2) is skipped


def test_one_row_that_disagrees_keeps_the_tile_for_its_group_only() -> None:
    q, k, v = planted([0, 8], rows=128)
    q[0, 100] = 0  # scores 0 everywhere: it would lose tile 0
    skip_map = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    stats = torch.zeros(2, dtype=torch.int64)
    run(
        Params(q, k, v, softmax_scale=1.0, skip_softmax_threshold=0.1, stats=stats, skip_map=skip_map),
        tile_n=16,
        order="reverse",
    )
    assert skip_map[0, 0].tolist() == [[2, 1], [1, 1]]
    assert stats.tolist() == [4, 1]


def test_probabilities_are_rounded_before_the_values_but_not_in_the_sum() -> None:
    q, k, v = planted([0, 0])
    k[0, 0, 0, 0] = 3.0
    p = math.exp(-3.0)
    out, lse = launch(Params(q, k, v, softmax_scale=1.0, return_lse=True))
    rounded = torch.tensor(p).bfloat16().item()
    total = 1 + 31 * p
    assert lse.item() == pytest.approx(3 + math.log(total), rel=1e-6)
    assert out[0, 0, 0, 1].item() == torch.tensor(16 * rounded / total).bfloat16().item()


def test_sinks_weigh_but_are_not_part_of_the_log_sum_exp() -> None:
    q, k, v = planted([1.0])
    sinks = torch.tensor([2.0])
    out, lse = launch(Params(q, k, v, softmax_scale=1.0, sinks=sinks, return_lse=True))
    assert out[0, 0, 0, 0].item() == pytest.approx(16 * math.e / (16 * math.e + math.exp(2.0)), rel=4e-3)
    assert lse.item() == pytest.approx(1 + math.log(16), rel=1e-6)


def inputs(batch: int, rows: int, keys: int, seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, rows, 4, 64), (batch, keys, 2, 64), (batch, keys, 2, 64))
    q, k, v = (torch.randn(shape, generator=generator).bfloat16() for shape in shapes)
    return q, k, v


@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_pages_in_any_order_give_the_same_bits(layout: str) -> None:
    q, k, v = inputs(2, 70, 192)
    table = torch.randperm(24, generator=torch.Generator().manual_seed(1)).to(torch.int32).view(2, 12)
    pools = []
    for source in (k, v):
        pool = torch.full((24, 16, 2, 64), math.nan).bfloat16()
        pool[table.flatten().long()] = source.reshape(24, 16, 2, 64)
        pools.append(pool.transpose(1, 2).contiguous() if layout == "HND" else pool)
    plain = launch(Params(q, k, v, mask="causal"))
    paged = launch(Params(q, *pools, page_table=table, kv_layout=layout, mask="causal"))
    assert torch.equal(plain, paged)  # type: ignore[arg-type]


def test_ragged_and_batched_give_the_same_bits() -> None:
    q, k, v = inputs(2, 70, 200)
    offsets_q, offsets_k = (torch.tensor([0, n, 2 * n], dtype=torch.int32) for n in (70, 200))
    ragged = Params(
        q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), cu_seqlens_q=offsets_q, cu_seqlens_k=offsets_k, mask="causal"
    )
    assert torch.equal(launch(ragged).view_as(q), launch(Params(q, k, v, mask="causal")))  # type: ignore


def test_keys_in_use_end_the_request() -> None:
    q, k, v = inputs(1, 40, 200)
    shorter = launch(Params(q, k[:, :130], v[:, :130], mask="causal"))
    k[:, 130:], v[:, 130:] = math.nan, math.nan
    used = launch(Params(q, k, v, seqused_k=torch.tensor([130], dtype=torch.int32), mask="causal"))
    assert torch.equal(shorter, used)  # type: ignore[arg-type]


@pytest.mark.parametrize("packed", [False, True])
def test_a_custom_mask_can_be_any_mask(packed: bool) -> None:
    q, k, v = inputs(2, 70, 100)
    mask = torch.arange(100) <= torch.arange(70).unsqueeze(1) + 30
    out = launch(Params(q, k, v, mask="custom", custom_mask=pack_mask(mask) if packed else mask))
    wanted = launch(Params(q, k, v, mask="causal"))
    assert torch.equal(out, wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3, 1), (1, 4), (1, 1)])
def test_one_custom_mask_can_serve_all_heads_or_requests(shape: tuple[int, int]) -> None:
    """As torch's scaled_dot_product_attention has it."""
    q, k, v = inputs(3, 20, 40)
    mask = torch.rand(*shape, 20, 40, generator=torch.Generator().manual_seed(1)) < 0.5
    for given in (mask, pack_mask(mask)):
        out = launch(Params(q, k, v, mask="custom", custom_mask=given))
        wanted = launch(Params(q, k, v, mask="custom", custom_mask=mask.expand(3, 4, 20, 40)))
        assert torch.equal(out, wanted)  # type: ignore[arg-type]


def test_geometry_comes_from_the_named_kernel() -> None:
    seen: list[Kernel] = []
    real = prefill._compute_group

    def spy(problem: object, kernel: Kernel, request: object, first_row: int) -> None:
        seen.append(kernel)
        real(problem, kernel, request, first_row)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefill, "_compute_group", spy)
        launch(Params(*inputs(1, 70, 100), mask="causal", skip_softmax_threshold=0.5))
    assert {kernel.name for kernel in seen} == {"skim_sm90_prefill_bf16_d64_causal_skip"} and len(seen) == 2
