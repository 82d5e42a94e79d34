"""Guarantees of decode that hold between runs, on any target: each function runs a few cases and asserts one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .cases import Case, Content, contents, rules_of
from .check import Result, assert_same_bits, bits, check
from .oracle import KEPT, SKIPPED, visible_keys
from .properties import Target, kinds_agree
from .run import run_case

_UNEVEN = ((1, 700), (4, 2100), (16, 513), (2, 0), (0, 40), (1, 1), (3, 1030))
RAGGED = Case(
    name="decode-property",
    phase="decode",
    head_dim=128,
    head_dim_v=128,
    lens=_UNEVEN,
    q_layout="ragged",
    kv_layout="ragged",
    seqused=True,
    pattern="random",
    heads_q=8,
    heads_kv=2,
)
PAGED = replace(RAGGED, kv_layout="nhd", page_size=16, seqused=False)
# Some requests are decode's, some prefill's; of the third and fourth one key decides, and of the last two.
_BOTH = ((1, 700), (70, 130), (40, 1279), (40, 1280), (0, 9), (1, 1), (66, 2), (2, 0), (9, 9), (9, 10))
MIXED = replace(RAGGED, phase="mixed", heads_q=4, lens=_BOTH, seqused=False)
LONG = replace(RAGGED, lens=((1, 4700), (2, 1100)), heads_q=4, heads_kv=1)
LONGS = (
    LONG,
    replace(LONG, mask="window", window=(4200, 0), skip="skip", kv_layout="hnd", page_size=64),
    replace(LONG, mask="full", head_dim=64, head_dim_v=64, dtype="fp16", lens=((1, 9300), (2, 1100)), heads_q=2),
    replace(LONG, mask="full", head_dim=256, head_dim_v=256, skip="dense", lens=((1, 4200),)),
    replace(LONG, kv_dtype="e4m3", descales="head", skip="skip", kv_layout="nhd", page_size=16),
    replace(LONG, mask="custom", custom="packed3", lens=((1, 3000), (30, 2100)), sinks=True),
)
KEYS = (0, 1, 2, 63, 64, 65, 127, 128, 129, 511, 512, 513, 1023, 1024, 1025, 2047, 2048, 2049, 4095, 4096, 4097)


def same_answers(what: str, first: Result, second: Result) -> None:
    """Every bit of every output of two runs of one call."""
    assert_same_bits(what, first, second)
    for name in ("stats", "skip_map"):
        if name in first.tensors:
            assert torch.equal(bits(first.tensors[name]), bits(second.tensors[name])), (what, name)


def ways_agree(case: Case, target: Target, ways: Iterable[dict[str, Any]]) -> Result:
    """The same call, run with other options, gives the same bits; the answer, which is the oracle's."""
    held = contents(case)
    first, _ = run_case(case, target.backend, held)
    check(first, held)
    for way in ways:
        again, _ = run_case(case, target.backend, held, **way)
        same_answers(f"{case.name} {case.mask} {case.skip} with {way}", first, again)
    return first


def chosen(case: Case, held: list[Content], indices: Sequence[int]) -> tuple[Case, list[Content]]:
    """The batch of these requests, in this order; one may come more than once."""
    lens, ids = (tuple(values[index] for index in indices) for values in (case.lens, case.streams))
    return replace(case, name=f"{case.name}-of-{len(indices)}", lens=lens, ids=ids), [held[index] for index in indices]


def batches(count: int, sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Each request alone, all of them backwards, and batches of the given sizes."""
    yield from ((index,) for index in range(count))
    yield tuple(reversed(range(count)))
    for size in sizes:
        yield tuple((5 * place + size) % count for place in range(size))


def batch_does_not_matter(case: Case, target: Target, sizes: Sequence[int]) -> None:
    """A request has the same bits alone, and in batches of other sizes and orders."""
    held = contents(case)
    together, _ = run_case(case, target.backend, held)
    check(together, held)
    for indices in batches(len(case.lens), sizes):
        if not any(case.lens[index][0] for index in indices):
            continue
        part, own = chosen(case, held, indices)
        got, _ = run_case(part, target.backend, own)
        assert_same_bits(part.name, got, together, list(enumerate(indices)))
        if "skip_map" not in got.tensors:
            continue
        for place, index in enumerate(indices):
            here, there = got.tensors["skip_map"][place], together.tensors["skip_map"][index]
            groups, tiles = (min(a, b) for a, b in zip(here.shape[1:], there.shape[1:], strict=True))
            assert torch.equal(here[:, :groups, :tiles], there[:, :groups, :tiles]), (part.name, place)


def requests_alone_are_as_in_batches(target: Target, sizes: Sequence[int] = (5,)) -> None:
    """Of decode alone, paged and with both phases in one call."""
    window = replace(PAGED, mask="window", window=(900, 0), skip="skip", sinks=True)
    for case in (RAGGED, window, MIXED):
        batch_does_not_matter(target.of(case), target, sizes)


def layouts_do_not_matter(target: Target) -> None:
    """Ragged, batched, in pages of any size and order, and between other numbers: the same bits."""
    case = target.of(replace(RAGGED, lens=((3, 1100), (3, 600), (3, 64))))
    held = contents(case)
    first, _ = run_case(case, target.backend, held)
    check(first, held)
    batched = replace(case, q_layout="batched")
    for other in (
        replace(case, fill=1e4),
        replace(batched, kv_layout="batched", seqused=True, memory="gaps"),
        replace(batched, kv_layout="batched", seqused=True, seqused_q=True, memory="packed_kv", fill=math.inf),
        replace(batched, kv_layout="nhd", page_size=1),
        replace(case, kv_layout="hnd", page_size=48, memory="gaps", seed=case.seed + 5),
        replace(case, kv_layout="nhd", page_size=1024),
    ):
        got, _ = run_case(other, target.backend, held)
        assert_same_bits(f"{other.q_layout} {other.kv_layout} {other.page_size}", got, first)


def every_length(target: Target) -> None:
    """Requests of no key, one, and around every border, in one call; what lies behind their ends is NaN."""
    for rows, skip in ((1, "stat"), (2, "dense")):
        case = replace(RAGGED, lens=tuple((rows, keys) for keys in KEYS), heads_q=2, heads_kv=1, skip=skip)
        for layout in (case, replace(case, kv_layout="nhd", page_size=64, mask="full")):
            held = contents(target.of(layout))
            check(run_case(target.of(layout), target.backend, held)[0], held)


def three_kinds_agree(target: Target) -> None:
    """At a threshold of 0 the skip and stat kernels have the bits of the dense one."""
    for base in (
        replace(RAGGED, lens=((1, 1300), (4, 2100))),
        replace(PAGED, lens=((2, 1300),), mask="window", window=(700, 3), head_dim=64, head_dim_v=64, dtype="fp16"),
        replace(RAGGED, lens=((2, 1200),), mask="full", head_dim=256, head_dim_v=256),
        replace(PAGED, lens=((2, 1200),), kv_dtype="e4m3"),
    ):
        kinds_agree(target.of(base), target)


def one_head_can_be_dense(target: Target) -> None:
    """A threshold of 0 of one head: its kv head's group keeps all, with the bits of dense; the other skips as ever."""
    case = target.of(replace(RAGGED, threshold_kind="head", lens=((2, 1300), (1, 2100))))
    held = contents(case)
    before, _ = run_case(case, target.backend, held)
    assert all(answer.skipped.all() for answer in check(before, held))
    dense, _ = run_case(replace(case, skip="dense"), target.backend, held)
    for one in held:
        assert one.threshold is not None
        one.threshold = np.where(np.arange(8) == 6, 0.0, one.threshold).astype(np.float32)
    after, _ = run_case(case, target.backend, held)
    check(after, held)
    for name in ("out", "lse"):
        new, old, full = (run.tensors[name] for run in (after, before, dense))
        assert torch.equal(bits(new[:, 4:]), bits(full[:, 4:])) and torch.equal(bits(new[:, :4]), bits(old[:, :4]))
        assert not torch.equal(bits(new[:, 4:]), bits(old[:, 4:]))


def what_no_row_sees_does_not_matter(target: Target) -> None:
    """NaN in keys and values that no row of the request sees: all bits stay, at the edge of windows and chunks."""
    plain = replace(RAGGED, lens=((3, 1700),), heads_q=4, heads_kv=1)
    for base in (
        replace(plain, mask="window", window=(900, 0)),
        replace(plain, mask="window", window=(100, 1), skip="dense", head_dim=64, head_dim_v=64),
        replace(plain, mask="chunked", chunk=650),
        replace(plain, mask="window", window=(900, 0), kv_layout="nhd", page_size=16, kv_dtype="e4m3", skip="skip"),
    ):
        case = target.of(base)
        (held,) = contents(case)
        clean, _ = run_case(case, target.backend, [held])
        check(clean, [held])
        hidden = torch.from_numpy(~visible_keys(rules_of(case), *case.lens[0]).any(0))
        assert hidden.sum() > 300 and hidden.sum() % case.tile_n, case.mask
        poisoned = held.clone()
        for tensor in (poisoned.k, poisoned.v):
            if tensor.element_size() == 1:
                tensor.view(torch.uint8)[hidden] = 0x7F  # NaN of e4m3
            else:
                tensor[hidden] = math.nan
        got, _ = run_case(case, target.backend, [poisoned])
        same_answers(f"{case.mask} {case.kv_layout}", clean, got)


def nan_reaches_its_own_row_or_key_only(target: Target) -> None:
    """NaN in one query: its group skips nothing, other rows stay numbers. In a key: its tile is kept, rows are NaN."""
    case = target.of(replace(RAGGED, lens=((8, 1000),), heads_q=16, pattern="all_but_first", mask="full"))
    held = contents(case)
    held[0].q[7, 3, 90] = math.nan
    (answer,) = check(run_case(case, target.backend, held)[0], held)
    assert (answer.skip_map[:8] == KEPT).all() and (answer.skip_map[8:, 0, 1:] == SKIPPED).all()
    assert np.isnan(answer.out).any(axis=2).sum() == 1
    held = contents(case)
    held[0].k[700, 0, 90] = math.nan
    (answer,) = check(run_case(case, target.backend, held)[0], held)
    assert (answer.skip_map[:8, 0, 700 // case.tile_n] == KEPT).all() and (answer.skip_map[:8] == SKIPPED).any()
    assert np.isnan(answer.out[:, :8]).all() and np.isfinite(answer.out[:, 8:]).all()


def nothing_to_see(target: Target) -> None:
    """Requests without keys, and rows before the first key: output 0 and lse -inf, also with sinks."""
    base = replace(RAGGED, sinks=True)
    for case in (
        replace(base, lens=((1, 0),), q_layout="batched", kv_layout="batched"),
        replace(base, lens=((0, 0), (2, 0), (0, 5)), mask="full", skip="dense"),
        replace(base, lens=((12, 3), (16, 1))),
        replace(base, lens=((12, 3), (16, 9)), mask="chunked", chunk=2, kv_layout="nhd"),
        replace(base, lens=((4, 700),), mask="window", window=(-1, -1), q_layout="batched", kv_layout="batched"),
    ):
        held = contents(target.of(case))
        check(run_case(target.of(case), target.backend, held)[0], held)


DECODE_PROPERTIES: tuple[Callable[[Target], None], ...] = (
    requests_alone_are_as_in_batches,
    layouts_do_not_matter,
    every_length,
    three_kinds_agree,
    one_head_can_be_dense,
    what_no_row_sees_does_not_matter,
    nan_reaches_its_own_row_or_key_only,
    nothing_to_see,
)
