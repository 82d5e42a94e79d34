"""The CPU reference on decoded requests: against the oracle, by hand, and bit for bit across batches and layouts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from skimattn import Params, launch
from skimattn._call.validate import validate
from skimattn._launch.buffers import make_buffers
from skimattn._select import kernels
from skimattn._select.dispatch import phases_of, spec_of
from skimattn.reference import attention as module
from skimattn.reference import decode

from tests.helpers.bodies import run_and_check, run_planted
from tests.helpers.cases import Case, contents
from tests.helpers.check import assert_same_bits, check
from tests.helpers.decode_cases import (
    decode_border_cases,
    decode_long_cases,
    decode_pairwise_cases,
    decode_pattern_cases,
    decode_start_cases,
    decode_tree_cases,
)
from tests.helpers.oracle import KEPT, SKIPPED
from tests.helpers.run import run_case

CASES = [*decode_pairwise_cases(), *decode_border_cases(), *decode_long_cases(), *decode_start_cases()]
CASES += decode_tree_cases()
LN2 = math.log(2.0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cases(case: Case) -> None:
    run_and_check(case, "reference")


@pytest.mark.parametrize("case", decode_pattern_cases(), ids=lambda case: case.name)
def test_planted(case: Case) -> None:
    run_planted(case, "reference")


def planted(tile_maxima: list[float], rows: int = 1, heads: int = 1) -> dict[str, torch.Tensor]:
    """Head dim 64, so 8 tiles of 128 keys to a leaf; every score of tile t is ``tile_maxima[t]``, values name it."""
    q, k, v = torch.zeros(1, rows, heads, 64), *(torch.zeros(1, 128 * len(tile_maxima), 1, 64) for _ in "kv")
    q[..., 0] = 1
    for tile, score in enumerate(tile_maxima):
        k[0, tile * 128 : (tile + 1) * 128, 0, 0] = score
        v[0, tile * 128 : (tile + 1) * 128, 0, tile] = 1
    return {"q": q.bfloat16(), "k": k.bfloat16(), "v": v.bfloat16()}


def counted(tensors: dict[str, torch.Tensor], **options: object) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """(out, map [heads, groups, tiles], counts) of a decoded call at scale 1 and a threshold of exp(-2)."""
    heads, tiles = tensors["q"].shape[2], -(-tensors["k"].shape[1] // 128)
    groups = -(-tensors["q"].shape[1] * heads // 64)
    stats = torch.zeros(2, dtype=torch.int64)
    skip_map = torch.zeros(1, heads, groups, tiles, dtype=torch.uint8)
    arguments = {"softmax_scale": 1.0, "skip_softmax_threshold": math.exp(-2), **options}
    call = Params(**tensors, **arguments, stats=stats, skip_map=skip_map)  # type: ignore[arg-type]
    assert phases_of(validate(call), "sm90") == ("decode",)
    out = launch(call)
    assert isinstance(out, torch.Tensor)
    return out, skip_map[0], stats.tolist()


@pytest.mark.parametrize(
    ("mask", "window", "maxima", "wanted"),
    [
        # Each leaf from tile 0's maximum, from its last tile down; what other leaves kept does not matter.
        (
            "full",
            None,
            [0, 8, -3, 5, -1, -1, 6, -3, -1, 1, -3, 2, -5, 9, 6, 0, 3],
            [2, 1, 2, 1, 2, 2, 1, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1],
        ),
        ("causal", None, [8] + [0] * 17, [1] + [2] * 17),  # leaves of which nothing is left
        ("full", None, [0] * 8 + [20] + [0] * 8, [1] * 17),  # 20 comes last in its leaf, and shows in no other
        ("full", None, [-9] + [0] * 7 + [20] + [0] * 8, [2] + [1] * 16),
        # A window's leaves start from the last tile.
        ("window", (-1, 0), [8] + [0] * 10, [1] * 11),
        ("window", (-1, 0), [8] + [0] * 9 + [3, 0, 0, 8], [1] + [2] * 12 + [1]),
        ("window", (300, 0), [8, 8, 8, 0, 3, 3], [0, 0, 0, 2, 1, 1]),
        ("window", (400, 0), [9] * 6 + [9, 2, 8, 3], [0] * 6 + [1, 1, 1, 1]),  # tile 7 is not measured against 8
        ("window", (400, 0), [9] * 6 + [8, 0, 8, 3], [0] * 6 + [1, 2, 1, 1]),
    ],
)
def test_which_tiles_are_skipped(
    mask: str, window: tuple[int, int] | None, maxima: list[float], wanted: list[int]
) -> None:
    out, skip_map, counts = counted(planted(maxima), mask=mask, **({"window_size": window} if window else {}))
    assert skip_map.flatten().tolist() == wanted
    visited = [mark for mark in wanted if mark]
    assert counts == [len(visited), visited.count(SKIPPED)]
    length = 128 * len(maxima)
    seen = [128] * len(maxima)
    if window and window[0] >= 0:
        seen = [min(128, max(0, (tile + 1) * 128 - (length - 1 - window[0]))) for tile in range(len(maxima))]
    parts = zip(maxima, seen, wanted, strict=True)
    weights = [math.exp(score) * keys if mark == KEPT else 0.0 for score, keys, mark in parts]
    total = sum(weights)
    assert out[0, 0, 0, : len(maxima)].tolist() == pytest.approx([weight / total for weight in weights], abs=4e-3)


def test_rows_of_all_heads_decide_together() -> None:
    """40 heads and 3 rows: 120 packed rows; the first group ends inside row 1, and one disagreeing head keeps all."""
    tensors = planted([0, 8] + [0] * 14, rows=3, heads=40)
    tensors["q"][0, 1, 30] = 0  # packed row 70, in the second group: 0 everywhere, so it loses nothing
    _, skip_map, counts = counted(tensors, mask="full")
    first, second = [2, 1] + [1] * 14, [1, 1] + [1] * 14
    assert all(skip_map[head].tolist() == [first, second] for head in range(40))
    assert counts == [40 * 2 * 16, 40]


def test_heads_without_a_row_in_a_group_record_nothing() -> None:
    tensors = planted([8] + [0] * 15, heads=100)
    _, skip_map, counts = counted(tensors, mask="full")
    visited = skip_map.ne(0).any(dim=2)
    assert visited[:64, 0].all() and not visited[64:, 0].any() and visited[64:, 1].all() and not visited[:64, 1].any()
    assert counts == [100 * 16, 100 * 15]


def test_two_start_tiles() -> None:
    """Of rows 0 and 1 the last key is in tile 2; they start from its maximum, the others from both tiles'."""
    tensors = planted([0, 8, 0, 0])
    tensors["q"] = tensors["q"].expand(1, 4, 1, 64).clone()
    short = {name: tensors[name][:, : 3 * 128 + 2] for name in ("k", "v")}
    short["k"] = short["k"].clone()
    short["k"][0, 256:, 0, 0] = torch.tensor([3.0] * 128 + [0.0, 0.0])
    _, skip_map, _ = counted({"q": tensors["q"], **short}, mask="window", window_size=(-1, 0))
    assert skip_map.flatten().tolist() == [2, 1, 1, 2]  # tile 3: 3 below what rows 2 and 3 start from
    short["k"][0, 384:, 0, 0] = 3.0
    _, skip_map, _ = counted({"q": tensors["q"], **short}, mask="window", window_size=(-1, 0))
    assert skip_map.flatten().tolist() == [2, 1, 1, 1]


@pytest.mark.parametrize("name", ["alibi_slopes", "sinks"])
@pytest.mark.parametrize("mask", ["full", "causal", "custom"])
def test_slopes_and_sinks_start_from_the_last_tile(name: str, mask: str) -> None:
    """Whose maximum no other tile reaches here: tile 0's is 3 below it, and so are those of the next leaf's tiles."""
    tensors = planted([5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 8])
    given = {"custom_mask": torch.ones(1, 12 * 128, dtype=torch.bool)} if mask == "custom" else {}
    _, skip_map, _ = counted(tensors, mask=mask, **given)
    assert skip_map.flatten().tolist() == [KEPT] * 8 + [SKIPPED] * 3 + [KEPT]
    value = torch.zeros(1) if name == "alibi_slopes" else torch.full((1,), -20.0)
    _, skip_map, _ = counted(tensors, mask=mask, **given, **{name: value})
    assert skip_map.flatten().tolist() == [SKIPPED] * 11 + [KEPT]


def test_a_last_tile_that_some_row_misses() -> None:
    """The rows of a causal step may end in the tile before it."""
    tensors = planted([5, 5, 5, 8, 0], rows=4)
    short = {"q": tensors["q"], **{name: tensors[name][:, : 4 * 128 + 2] for name in ("k", "v")}}
    _, skip_map, _ = counted(short, mask="causal", sinks=torch.full((1,), -20.0))
    assert skip_map.flatten().tolist() == [SKIPPED] * 3 + [KEPT, SKIPPED]


def test_a_threshold_of_zero_gives_the_bits_of_dense() -> None:
    """One head's threshold of 0 is enough for its group."""
    case = Case("zero", phase="decode", heads_q=4, lens=((9, 1500),), threshold_kind="head", mask="causal")
    held = contents(case)
    dense, _ = run_case(replace(case, skip="dense"), "reference", held)
    assert check(run_case(case, "reference", held)[0], held)[0].skipped.any()
    for thresholds in ((0.0,), (1e-3, 0.0), (1.0, 1.0, 0.0, 1.0)):
        some = replace(case, thresholds=thresholds)
        assert contents(some)[0].threshold is not None
        replaced = [replace(one, threshold=contents(some)[0].threshold) for one in held]
        got, _ = run_case(some, "reference", replaced)
        assert check(got, replaced)[0].skipped.sum() == 0
        assert_same_bits(f"thresholds {thresholds}", got, dense)


MIXED = Case(
    "mixed",
    head_dim=128,
    head_dim_v=128,
    mask="causal",
    heads_q=4,
    heads_kv=2,
    lens=((1, 700), (140, 300), (8, 1100), (40, 1279), (40, 1280), (1, 1), (2, 0)),
    q_layout="ragged",
    kv_layout="ragged",
    pattern="random",
)


@pytest.mark.parametrize("mask", ["full", "causal", "window", "chunked"])
@pytest.mark.parametrize("sinks", [False, True])
def test_a_request_alone_has_its_bits_in_any_batch(mask: str, sinks: bool) -> None:
    window = (300, 2) if mask == "window" else (-1, -1)
    case = replace(MIXED, mask=mask, window=window, chunk=512 if mask == "chunked" else 0, sinks=sinks)
    held = contents(case)
    together, _ = run_case(case, "reference", held)
    check(together, held)
    for index in range(len(case.lens)):
        alone = case.alone(index)
        layouts = (
            alone,
            replace(alone, q_layout="batched", kv_layout="batched", memory="gaps"),
            replace(alone, kv_layout="nhd", page_size=16),
            replace(alone, q_layout="batched", kv_layout="hnd", page_size=128),
            replace(alone, q_layout="batched", kv_layout="batched", seqused=True, seqused_q=True),
        )
        for layout in layouts[: 5 if sinks else 1]:
            if layout.launched().decodes(*case.lens[index]) != case.launched().decodes(*case.lens[index]):
                assert case.lens[index] in ((1, 1), (2, 0))  # decode's only if their keys come from a cache
                continue
            single, _ = run_case(layout, "reference", [held[index]])
            assert_same_bits(f"request {index}, {layout.q_layout} {layout.kv_layout}", single, together, [(0, index)])
            here, there = single.tensors["skip_map"][0], together.tensors["skip_map"][index]
            assert torch.equal(here, there[:, : here.shape[1], : here.shape[2]])


def fold(states: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(maximum in log2, sum) of states from the first on."""
    m, total = torch.tensor(-math.inf), torch.tensor(0.0)
    for other, one in states:
        top = torch.maximum(m, other)
        here, there = torch.exp2(m - top), torch.exp2(other - top)
        total = (total.double() * here.double() + (one * there).double()).float()
        m = top
    return m, total


def test_leaves_are_merged_into_branches_and_branches_into_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every leaf's state is known exactly, so the order in which they are merged shows in the last bits of the sum."""
    merged: list[decode._State] = []
    monkeypatch.setattr(decode._Group, "_store", lambda _, state: merged.append(state))
    generator = torch.Generator().manual_seed(6)
    flat, backwards = 0, 0
    for leaves in (5, 9, 17, 33, 33, 50):
        scores = (torch.randn(leaves, generator=generator) * 2).bfloat16()
        q, k = torch.zeros(1, 1, 1, 64).bfloat16(), torch.zeros(1, leaves * 1024, 1, 64).bfloat16()
        q[..., 0] = 1
        k[0, :, 0, 0] = scores.repeat_interleave(1024)
        launch(Params(q, k, torch.ones_like(k), softmax_scale=1.0))
        unit = torch.tensor(math.log2(math.e), dtype=torch.float32)
        states = [(score.float() * unit, torch.tensor(1024.0)) for score in scores]
        twigs = [fold(states[first : first + 4]) for first in range(0, leaves, 4)]
        m, total = fold([fold(twigs[first : first + 2]) for first in range(0, len(twigs), 2)])
        state = merged.pop()
        assert (state.m.item(), state.sum.item()) == (m.item(), total.item())
        assert (state.o == total).all()
        flat += fold(twigs)[1].item() != total.item()
        backwards += fold([fold(states[first : first + 4][::-1]) for first in range(0, leaves, 4)])[1] != total
    assert flat and backwards  # other orders would be told apart


def test_one_kernel_can_be_made_to_take_all_requests() -> None:
    """For measurements: without the other phase's kernel, a call is computed by the one that is given."""
    q, k = torch.randn(1, 100, 2, 64).bfloat16(), torch.randn(1, 300, 1, 64).bfloat16()
    params = Params(q, k, k.clone(), mask="causal")
    problem = validate(params)
    outs = []
    for phase in ("prefill", "decode"):
        buffers = make_buffers(params, problem.out_shape)
        row = kernels.unbuilt_row(spec_of(problem, "sm90", phase))
        module.attention(problem, module.Kernels(**{phase: row}), buffers)
        outs.append(buffers.out)
    assert torch.allclose(outs[0].float(), outs[1].float(), atol=0.02) and not torch.equal(*outs)
