"""``merge_states``: against float64, attention from its parts, states that saw nothing, bits, tracing, refusals."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import pytest
import torch
from skimattn import ArgumentError, attention, merge_states
from skimattn.integrations import torch_ops
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.helpers.planted import same

UNIT = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-21}  # relative, of the output
SHAPES = {"batched": (2, 5, 3, 16), "ragged": (7, 3, 8), "one row": (2, 8), "nothing": (0, 3, 8)}
States = tuple[list[torch.Tensor], list[torch.Tensor]]


def states(
    count: int, shape: tuple[int, ...] = (2, 5, 3, 16), dtype: torch.dtype = torch.float32, seed: int = 0
) -> States:
    random = torch.Generator().manual_seed(seed)
    outs = [torch.randn(shape, generator=random).to(dtype) for _ in range(count)]
    return outs, [torch.randn(shape[:-1], generator=random) * 8 for _ in range(count)]


def oracle(outs: list[torch.Tensor], lses: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """In float64, by the definition: every state is its output times the exponential of its lse."""
    out, lse = torch.stack(outs).double(), torch.stack(lses).double()
    total = torch.logsumexp(lse, dim=0)
    shares = torch.exp(lse - total.nan_to_num(neginf=0.0)).unsqueeze(-1)
    return torch.where(shares > 0, shares * out, 0.0).sum(dim=0), total


def check(outs: list[torch.Tensor], lses: list[torch.Tensor]) -> None:
    out, lse = merge_states(outs, lses)
    wanted, wanted_lse = oracle(outs, lses)
    assert out.shape == outs[0].shape and out.dtype == outs[0].dtype and out.is_contiguous()
    assert lse.shape == out.shape[:-1] and lse.dtype == torch.float32 and lse.is_contiguous()
    assert torch.allclose(lse.double(), wanted_lse, rtol=1e-6, atol=1e-5)
    assert torch.allclose(out.double(), wanted, rtol=UNIT[out.dtype], atol=1e-5)


@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 3, 17])
def test_against_float64(count: int, shape: str, dtype: torch.dtype) -> None:
    check(*states(count, SHAPES[shape], dtype))


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_exponentials_that_overflow_or_vanish_alone(size: float) -> None:
    outs, lses = states(3)
    check(outs, [lse + size for lse in lses])


def test_one_state_is_itself() -> None:
    outs, lses = states(1, dtype=torch.bfloat16)
    assert same(merge_states(outs, lses), (outs[0], lses[0]))


def test_states_that_saw_nothing_weigh_nothing_whatever_they_hold() -> None:
    outs, lses = states(4)
    lses[1].fill_(-math.inf)
    outs[1].fill_(math.nan)
    lses[3][0], outs[3][0] = -math.inf, math.inf
    out, lse = merge_states(outs, lses)
    assert same((out[1], lse[1]), tuple(x[1] for x in merge_states(outs[::2] + outs[3:], lses[::2] + lses[3:])))
    assert same((out[0], lse[0]), tuple(x[0] for x in merge_states(outs[::2], lses[::2])))
    lses = [torch.full_like(lse, -math.inf) for lse in lses]
    out, lse = merge_states(outs, lses)
    assert not out.any() and not out.signbit().any() and bool((lse == -math.inf).all())


def test_nan_stays_visible() -> None:
    outs, lses = states(3)
    lses[1][0, 0, 0] = math.nan
    outs[2][1, 1, 1, 3] = math.nan
    out, lse = merge_states(outs, lses)
    assert bool(out[0, 0, 0].isnan().all()) and bool(lse[0, 0, 0].isnan())
    assert int(out.isnan().sum()) == 16 + 1 and int(lse.isnan().sum()) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parts", [[75, 75], [1, 100, 49], [150, 0], [64, 64, 22]], ids=str)
def test_attention_over_parts_of_the_keys_is_attention_over_all(parts: list[int], dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, length, heads, 64, generator=random).to(dtype) for length, heads in ((9, 4), (150, 2), (150, 2))
    )
    every = [
        attention(q, one, other, return_lse=True)
        for one, other in zip(k.split(parts, dim=1), v.split(parts, dim=1), strict=True)
    ]
    out, lse = merge_states([out for out, _ in every], [lse for _, lse in every])
    whole, whole_lse = attention(q, k, v, return_lse=True)
    assert torch.allclose(lse, whole_lse, rtol=0, atol=1e-5)
    assert torch.allclose(out.float(), whole.float(), rtol=4 * UNIT[dtype], atol=2 * UNIT[dtype])
    sinks = torch.tensor([-1.0, 0.0, 2.0, 9.0])
    with_sinks = attention(q, k, v, sinks=sinks)
    out = out * torch.sigmoid(lse - sinks).unsqueeze(-1)  # as the docstring says
    assert torch.allclose(out, with_sinks.float(), rtol=4 * UNIT[dtype], atol=2 * UNIT[dtype])


def test_stacked_and_strided_states_give_the_same_bits() -> None:
    outs, lses = states(3, dtype=torch.bfloat16)
    wanted = merge_states(outs, lses)
    assert same(merge_states(torch.stack(outs), torch.stack(lses)), wanted)
    assert same(merge_states(tuple(outs), torch.stack(lses)), wanted)
    apart = [torch.stack([x, x], dim=-1)[..., 0] for x in (*outs, *lses)]
    turned = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (*outs, *lses)]
    for given in (apart, turned):
        assert same(merge_states(given[:3], given[3:]), wanted)


def test_bits_do_not_depend_on_neighbours_or_surroundings() -> None:
    outs, lses = states(4, (37, 3, 8))
    whole = merge_states(outs, lses)
    for rows in (slice(0, 1), slice(5, 6), slice(3, 20), slice(36, 37)):
        assert same(merge_states([x[rows] for x in outs], [x[rows] for x in lses]), tuple(x[rows] for x in whole))
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
            assert same(merge_states(outs, lses), whole)
    finally:
        torch.set_default_dtype(before)


def test_states_are_left_as_they_are() -> None:
    outs, lses = states(2)
    kept = [x.clone() for x in (*outs, *lses)]
    merge_states(outs, lses)
    assert same([*outs, *lses], kept)


# As an operator


@pytest.mark.parametrize("count", [1, 3])
def test_opcheck(count: int) -> None:
    results = torch.library.opcheck(torch_ops.merge_states.default, states(count, dtype=torch.bfloat16))
    assert results and set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("stacked", [False, True])
def test_compiled(stacked: bool, backend: str) -> None:
    torch._dynamo.reset()
    outs, lses = states(3, dtype=torch.float16)
    given: Any = (torch.stack(outs), torch.stack(lses)) if stacked else (outs, lses)
    step = torch.compile(lambda outs, lses: merge_states(outs, lses), fullgraph=True, backend=backend)
    assert same(step(*given), merge_states(outs, lses))


def test_attention_and_merging_in_one_graph() -> None:
    torch._dynamo.reset()
    q, k, v = (torch.randn(2, 40, 2, 64).bfloat16() for _ in range(3))

    def step() -> Any:
        parts = [attention(q, k[:, rows], v[:, rows], return_lse=True) for rows in (slice(25), slice(25, None))]
        return merge_states([out for out, _ in parts], [lse for _, lse in parts])

    assert same(torch.compile(step, fullgraph=True, backend="aot_eager")(), step())


@pytest.mark.parametrize("strict", [False, True])
def test_exported_programs_run_with_other_sizes(strict: bool) -> None:
    class Merge(torch.nn.Module):
        def forward(self, outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return merge_states(outs, lses)

    given = tuple(torch.stack(x) for x in states(3, (9, 3, 8)))
    rows, file = torch.export.Dim("rows"), io.BytesIO()
    program = torch.export.export(Merge(), given, dynamic_shapes=({1: rows}, {1: rows}), strict=strict)
    torch.export.save(program, file)
    file.seek(0)
    module = torch.export.load(file).module()
    for length in (9, 2, 100):
        other = tuple(torch.stack(x) for x in states(3, (length, 3, 8)))
        assert same(module(*other), merge_states(*other))


@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
def test_shapes_without_data(device: str) -> None:
    with FakeTensorMode():
        outs = torch.empty(3, 7, 4, 64, dtype=torch.bfloat16, device=device)
        out, lse = merge_states(outs, torch.empty(3, 7, 4, device=device))
        assert (out.shape, out.dtype, out.device.type) == ((7, 4, 64), torch.bfloat16, device)
        assert (lse.shape, lse.dtype, lse.device.type) == ((7, 4), torch.float32, device)


# Refusals

O, L = torch.zeros(2, 3, 8), torch.zeros(2, 3)  # noqa: E741
CAUSES = [
    (None, [L], "outs: expected a tensor or a sequence of tensors (got NoneType)"),
    ("states", [L], "outs: expected a tensor or a sequence of tensors (got str)"),
    ([O], {0: L}, "lses: expected a tensor or a sequence of tensors (got dict)"),
    ([O, 1.0], [L, L], "outs[1]: expected a torch.Tensor (got float)"),
    (torch.zeros(()), [L], "outs: expected a sequence of tensors, or states in the first dimension of one (got torch."),
    ([], [], "outs: expected at least one state (got none)"),
    (O.new_zeros(0, 2, 3, 8), L.new_zeros(0, 2, 3), "outs: expected at least one state (got none)"),
    ([O, O], [L], "lses: expected 2 states, like outs (got 1)"),
    ([O[0, 0]], [L[0, 0]], "outs: expected states of shape [..., H, D] (got [8])"),
    ([O, O[:1]], [L, L], "outs[1]: expected shape [2, 3, 8] (got [1, 3, 8])"),
    ([O, O], [L, L[:, :2]], "lses[1]: expected shape [2, 3] (got [2, 2])"),
    ([O], [O], "lses[0]: expected shape [2, 3] (got [2, 3, 8])"),
    ([O, O.half()], [L, L], "outs[1]: expected dtype torch.float32 (got torch.float16)"),
    ([O.double()], [L], "outs[0]: expected dtype torch.bfloat16 or torch.float16 or torch.float32 (got torch.float64)"),
    ([O], [L.double()], "lses[0]: expected dtype torch.float32 (got torch.float64)"),
    ([O], [L.half()], "lses[0]: expected dtype torch.float32 (got torch.float16)"),
    ([O, O.to("meta")], [L, L], "outs[1]: expected a tensor on cpu, like outs[0] (got meta)"),
    ([O.to_sparse()], [L], "outs[0]: expected a dense (strided) tensor (got torch.sparse_coo)"),
]


@pytest.mark.parametrize(("outs", "lses", "text"), CAUSES, ids=[text.split(" (got")[0] for *_, text in CAUSES])
def test_refused_by_name(outs: Any, lses: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{re.escape(text)}"):
        merge_states(outs, lses)


def test_backward_is_refused_where_it_would_be_recorded() -> None:
    outs, lses = states(2)
    outs[1].requires_grad_()
    with pytest.raises(ArgumentError, match=r"^outs\[1\]: expected no requires_grad, since there is no backward pass"):
        merge_states(outs, lses)
    with pytest.raises(Exception, match="there is no backward pass"):
        torch.compile(merge_states, fullgraph=True, backend="aot_eager")(outs, lses)
    with torch.no_grad():
        merge_states(outs, lses)
