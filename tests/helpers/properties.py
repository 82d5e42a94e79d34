"""Guarantees that hold between runs, on any target: each function runs a few cases and asserts one of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from .build import build, stats_before
from .cases import Case, Content, contents, rules_of
from .check import assert_same_bits, bits, check, check_maps
from .oracle import KEPT, SKIPPED, visible_keys
from .run import run_built, run_case

_UNEVEN = ((130, 300), (0, 40), (1, 200), (40, 0), (65, 270))
BASE = Case(
    name="property", head_dim=128, head_dim_v=128, lens=_UNEVEN, q_layout="ragged", kv_layout="ragged", pattern="random"
)
FULL = replace(BASE, name="property-full", mask="full")
SEEING = replace(FULL, name="property-seeing", lens=((100, 400), (70, 300)), pattern="all_but_first")


@dataclass(frozen=True)
class Target:
    """Where cases run: a backend, and the kernels of an architecture and element type."""

    backend: str
    arch: str = "sm90"
    dtype: str = "bf16"

    def of(self, case: Case) -> Case:
        """A case on these kernels; the first request of ``SEEING`` has a second row group on each."""
        moved = replace(case, arch=self.arch, dtype=self.dtype if case.dtype == "bf16" else case.dtype)
        rows = moved.group_rows + 36
        return replace(moved, lens=((rows, 400), *case.lens[1:])) if case.lens[0] == (100, 400) else moved


def kinds_agree(base: Case, target: Target) -> None:
    """One call through the three kinds of kernel: at threshold 0 all have the same bits, above it skip and stat do."""
    stat = replace(base, skip="stat", threshold_kind="float", thresholds=(1e-3,))
    held = contents(stat)
    skipping, _ = run_case(stat, target.backend, held)
    check(skipping, held)
    assert_same_bits(
        f"{base.name}: stat and skip", skipping, run_case(replace(stat, skip="skip"), target.backend, held)[0]
    )
    never = replace(stat, thresholds=(0.0,))
    for one in held:
        one.threshold = np.zeros(base.heads_q, np.float32)
    counted, _ = run_case(never, target.backend, held)
    assert all(answer.skipped.sum() == 0 for answer in check(counted, held))
    for skip in ("skip", "dense"):
        other, _ = run_case(replace(never, skip=skip), target.backend, held)
        assert_same_bits(f"{base.name}: stat at 0 and {skip}", counted, other)
    tensor = replace(never, skip="skip", threshold_kind="head")
    assert_same_bits(f"{base.name}: a threshold tensor of 0", counted, run_case(tensor, target.backend, held)[0])


def threshold_zero_is_dense(target: Target) -> None:
    """The three kinds of kernel agree, for every head_dim and some masks."""
    narrow = {"mask": "window", "window": (150, 20), "dtype": "fp16"}
    kinds_agree(target.of(BASE), target)
    kinds_agree(target.of(FULL), target)
    kinds_agree(target.of(replace(BASE, head_dim=64, head_dim_v=64, **narrow)), target)  # type: ignore[arg-type]
    for dim in (80, 96, 192):
        kinds_agree(target.of(replace(BASE, head_dim=dim, head_dim_v=dim)), target)
    kinds_agree(target.of(replace(BASE, head_dim=192)), target)
    kinds_agree(target.of(replace(BASE, head_dim=256, head_dim_v=256)), target)


def skip_equals_stat(target: Target) -> None:
    """Counting changes nothing, however the threshold is given."""
    for base in map(target.of, (BASE, SEEING)):
        held = contents(base)
        counted, _ = run_case(base, target.backend, held)
        assert any(answer.skipped.any() for answer in check(counted, held))
        for kind in ("float", "batch", "head"):
            other, _ = run_case(replace(base, skip="skip", threshold_kind=kind), target.backend, held)
            assert_same_bits(f"{base.name}: skip and stat, threshold by {kind}", counted, other)


def alone_equals_batched(target: Target) -> None:
    """A request by itself, in any layout, has the bits it has in a batch."""
    base = target.of(BASE)
    held = contents(base)
    together, _ = run_case(base, target.backend, held)
    check(together, held)
    for index, (len_q, _) in enumerate(base.lens):
        if len_q == 0:
            continue
        alone = base.alone(index)
        variants = (
            alone,
            replace(alone, q_layout="batched", kv_layout="batched", memory="transposed"),
            replace(alone, kv_layout="nhd", page_size=48),
            replace(alone, q_layout="batched", kv_layout="hnd", page_size=128),
        )
        for variant in variants:
            single, _ = run_case(variant, target.backend, [held[index]])
            what = f"request {index} alone, {variant.q_layout} q, {variant.kv_layout} keys"
            assert_same_bits(what, single, together, [(0, index)])
            if len(held[index].k):
                here, there = single.tensors["skip_map"][0], together.tensors["skip_map"][index]
                assert torch.equal(here, there[:, : here.shape[1], : here.shape[2]]), what


def neighbours_do_not_matter(target: Target) -> None:
    """Other requests' values, lengths' surroundings and other heads do not reach a request's bits."""
    base = target.of(BASE)
    held = contents(base)
    before, _ = run_case(base, target.backend, held)
    for chosen in (0, 2):
        changed = [one if index == chosen else _scrambled(one, index) for index, one in enumerate(held)]
        after, _ = run_case(replace(base, fill=1e4), target.backend, changed)
        assert_same_bits(f"request {chosen} among other neighbours", before, after, [(chosen, chosen)])
        assert torch.equal(before.tensors["skip_map"][chosen], after.tensors["skip_map"][chosen])


def _scrambled(one: Content, seed: int) -> Content:
    """Other values, many of them large, some NaN or Inf."""
    other = one.clone()
    generator = torch.Generator().manual_seed(seed)
    for tensor in (other.q, other.k, other.v):
        noise = torch.randn(tensor.shape, generator=generator) * 50.0
        noise[noise > 120] = math.inf
        noise[noise < -120] = math.nan
        tensor.copy_(noise.to(tensor.dtype))
    return other


def statistics_accumulate(target: Target) -> None:
    """Two launches add twice, and a map entry that no launch visits keeps what it held."""
    for kind in ("all", "batch", "head"):
        case = replace(target.of(BASE), stats_kind=kind)
        held = contents(case)
        built = build(case, held)
        first = run_built(built, target.backend)
        check_maps(first, check(first, held))
        once = first.tensors["stats"] - stats_before(tuple(first.tensors["stats"].shape))
        again = build(case, held)
        again.tensors["stats"].copy_(first.tensors["stats"])
        twice = run_built(again, target.backend).tensors["stats"] - stats_before(tuple(once.shape))
        assert torch.equal(twice, 2 * once) and int(once.sum()) > 0


def statistics_without_map(target: Target) -> None:
    """The map is optional."""
    case = replace(target.of(BASE), stats_kind="head")
    held = contents(case)
    built = build(case, held)
    del built.tensors["skip_map"]
    check(run_built(built, target.backend), held)


def nan_in_a_query_poisons_its_row_only(target: Target) -> None:
    """One NaN in q: its row is NaN, its group keeps every tile, and everything else is as the oracle says."""
    case = target.of(SEEING)
    held = contents(case)
    row = case.group_rows + 6
    held[0].q[row, 0, 90] = math.nan
    result, _ = run_case(case, target.backend, held)
    answers = check(result, held)
    assert np.isnan(answers[0].out[row, 0]).all() and np.isnan(answers[0].out).any(axis=(1, 2)).sum() == 1
    assert (answers[0].skip_map[0, 1] == KEPT).all() and (answers[0].skip_map[0, 0] == SKIPPED).any()


def nan_in_a_key_is_never_skipped(target: Target) -> None:
    """One NaN in a key of a tile that would be dropped: the tile is kept by every group that sees the key."""
    case = target.of(SEEING)
    held = contents(case)
    held[0].k[140, 0, 90] = math.nan
    answers = check(run_case(case, target.backend, held)[0], held)
    assert (answers[0].skip_map[:, :, 1] == KEPT).all() and np.isnan(answers[0].out).all()
    causal = replace(case, mask="causal", lens=((200, 330), (70, 300)))
    held = contents(causal)
    held[0].k[230, 0, 90] = math.nan  # row 100 is the first to see it
    answers = check(run_case(causal, target.backend, held)[0], held)
    assert np.isfinite(answers[0].out[:100]).all() and np.isnan(answers[0].out[100:]).all()


def infinite_keys(target: Target) -> None:
    """A key with +Inf makes rows NaN where q is positive there, and vanishes where it is negative."""
    case = target.of(SEEING)
    held = contents(case)
    held[0].q[:, :, 90] = held[0].q[:, :, 90].abs() + 0.25
    held[0].q[::2, :, 90] *= -1
    held[0].k[9, 0, 90] = math.inf  # in the tile that is visited first
    answers = check(run_case(case, target.backend, held)[0], held)
    assert np.isfinite(answers[0].out[::2]).all() and np.isnan(answers[0].out[1::2]).all()


def scores_of_minus_infinity(target: Target) -> None:
    """A score of -Inf counts as masked: a tile of nothing else is dropped, even before any tile was kept."""
    case = target.of(SEEING)
    held = contents(case)
    held[0].q[:, :, 90] = held[0].q[:, :, 90].abs() + 0.25
    held[0].k[:128, 0, 90] = -math.inf  # the whole tile that is visited first
    answers = check(run_case(case, target.backend, held)[0], held)
    assert (answers[0].skip_map[:, :, 0] == SKIPPED).all() and np.isfinite(answers[0].out).all()


def odd_values_in_skipped_tiles(target: Target) -> None:
    """NaN and Inf in the values of a tile that is skipped do not matter; in a kept one they reach their columns."""
    case = target.of(SEEING)
    held = contents(case)
    held[0].v[205, 0, 3], held[0].v[206, 0, 4] = math.nan, math.nan if target.dtype == "e4m3" else math.inf
    answers = check(run_case(case, target.backend, held)[0], held)
    assert (answers[0].skip_map[:, :, 1] == SKIPPED).all() and np.isfinite(answers[0].out).all()
    held[0].v[5, 0, 3] = math.nan
    answers = check(run_case(case, target.backend, held)[0], held)
    assert np.isnan(answers[0].out[:, :, 3]).all() and np.isfinite(np.delete(answers[0].out, 3, axis=2)).all()


def nothing_to_see(target: Target) -> None:
    """Requests without keys, and rows before the first key: output 0 and lse -inf, also with sinks."""
    base = replace(target.of(BASE), sinks=True)
    for case in (
        replace(base, lens=((70, 0),), q_layout="batched", kv_layout="batched"),
        replace(base, lens=((70, 0), (70, 0)), q_layout="batched", kv_layout="batched", seqused=True, skip="dense"),
        replace(base, lens=((0, 0), (70, 0), (0, 5)), mask="full"),
        replace(base, lens=((200, 3), (130, 64))),
        replace(base, lens=((200, 3), (130, 64)), mask="chunked", chunk=2, head_dim=192, kv_layout="nhd"),
    ):
        held = contents(case)
        check(run_case(case, target.backend, held)[0], held)


def repeated_runs(target: Target, options: list[dict[str, Any]]) -> None:
    """The same call, run in other ways (schedules, grids, plain repetition), gives the same bits."""
    for case in (
        BASE,
        replace(FULL, pattern="alternating"),
        replace(SEEING, kv_layout="hnd", page_size=16, mask="causal"),
    ):
        case = target.of(case)
        held = contents(case)
        first, _ = run_case(case, target.backend, held)
        check(first, held)
        for option in options:
            again, _ = run_case(case, target.backend, held, **option)
            assert_same_bits(f"{case.name} with {option}", first, again)
            for name in ("stats", "skip_map"):
                assert torch.equal(bits(first.tensors[name]), bits(again.tensors[name])), (case.name, option, name)


def slopes_by_request(target: Target) -> None:
    """Alibi slopes ``[B, Hq]`` are those of each request: it has the same bits as alone with its own."""
    slopes, batched = torch.tensor([[0.01, 0.3], [0.5, 0.0]]), {"q_layout": "batched", "kv_layout": "batched"}
    base = replace(BASE, name="property-slopes", lens=((70, 200), (70, 200)), ids=(0, 1), alibi=True, **batched)
    base = target.of(base)
    held = contents(base)
    built = build(base, held)
    built.tensors["alibi_slopes"] = slopes
    together = run_built(built, target.backend)
    parts = []
    for index in (0, 1):
        alone = replace(base, name=f"{base.name}-{index}", lens=base.lens[:1], ids=(index,))
        one = build(alone, held[index : index + 1])
        one.tensors["alibi_slopes"] = slopes[index].clone()
        parts.append(run_built(one, target.backend))
        for name in ("out", "lse"):
            assert torch.equal(bits(together.tensors[name][index]), bits(parts[-1].tensors[name][0])), (name, index)
    assert not torch.equal(bits(parts[0].tensors["lse"]), bits(parts[1].tensors["lse"]))


def what_no_row_sees_does_not_matter(target: Target) -> None:
    """NaN in keys and values that no row of the request sees: all bits stay, at the edge of windows and chunks."""
    plain = replace(BASE, name="property-edges", lens=((300, 900),), q_layout="batched", kv_layout="batched", heads_q=1)
    edges = (
        replace(plain, mask="window", window=(90, 20)),
        replace(plain, mask="window", window=(200, 0), skip="dense"),
        replace(plain, mask="chunked", chunk=250),
        replace(plain, mask="window", window=(90, 20), kv_layout="nhd", page_size=16, skip="skip"),
    )
    for base in map(target.of, edges):
        (held,) = contents(base)
        clean, _ = run_case(base, target.backend, [held])
        hidden = torch.from_numpy(~visible_keys(rules_of(base), *base.lens[0]).any(0))
        assert hidden.sum() > 300 and hidden.sum() % base.tile_n, base.mask  # whole tiles, and a part of one
        poisoned = held.clone()
        for tensor in (poisoned.k, poisoned.v):
            if tensor.element_size() == 1:
                tensor.view(torch.uint8)[hidden] = 0x7F  # NaN of e4m3
            else:
                tensor[hidden] = math.nan
        got, _ = run_case(base, target.backend, [poisoned])
        assert_same_bits(f"{base.mask} {base.kv_layout}", clean, got)


PROPERTIES: tuple[Callable[[Target], None], ...] = (
    slopes_by_request,
    what_no_row_sees_does_not_matter,
    threshold_zero_is_dense,
    skip_equals_stat,
    alone_equals_batched,
    neighbours_do_not_matter,
    statistics_accumulate,
    statistics_without_map,
    nan_in_a_query_poisons_its_row_only,
    nan_in_a_key_is_never_skipped,
    infinite_keys,
    scores_of_minus_infinity,
    odd_values_in_skipped_tiles,
    nothing_to_see,
)
INFINITE = (infinite_keys, scores_of_minus_infinity)  # not with e4m3, which has no Inf


def properties_of(target: Target) -> list[Callable[[Target], None]]:
    """The properties that the target's element type can show."""
    return [holds for holds in PROPERTIES if target.dtype != "e4m3" or holds not in INFINITE]
