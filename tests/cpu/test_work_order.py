"""The work order alone: every query tile of every head and request is handed out once, the longest ones first."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimattn.codegen.parameter_block import aligned_block

from tests.emulator import EmulatedKernel, compile_source

SOURCE = Path(__file__).parents[1] / "emulator" / "kernels" / "work_order.cu"
TILE_M, WORDS = 128, 8
BATCH, HEAD, ROW0, LEN_Q, LEN_K, Q_OFFSET, K_OFFSET = range(1, WORDS)
BIG = (1 << 31) - 1


@cache
def kernel() -> EmulatedKernel:
    return compile_source("work_order_kernel", SOURCE.read_text())


@dataclass(frozen=True)
class Batch:
    """Lengths of the requests, and how the launch cuts them up."""

    lens_q: tuple[int, ...]
    lens_k: tuple[int, ...]
    heads_q: int = 2
    heads_kv: int = 1
    section: int = 1
    requests: int = 32  # that share L2
    grid: int = 3
    ragged_q: bool = True
    used_q: tuple[int, ...] = ()
    used_k: tuple[int, ...] = ()
    most_q: int = BIG
    most_k: int = BIG
    # Packed rows up to which requests are left to decode kernels, those to which they are if they have keys enough, and
    # how many keys for each row that is.
    decoded: tuple[int, int, int] = (0, 0, 0)
    more_keys: int = -BIG - 1  # than rows that those have at least
    seed: int = field(default=0, compare=False)

    @property
    def true_q(self) -> list[int]:
        """Rows that count, by what the contract says of hints and seqused."""
        return _cut(self.lens_q, self.used_q, self.most_q)

    @property
    def true_k(self) -> list[int]:
        return _cut(self.lens_k, self.used_k, self.most_k)


def _cut(lens: tuple[int, ...], used: tuple[int, ...], most: int) -> list[int]:
    return [max(0, min(most, length, *used[index : index + 1])) for index, length in enumerate(lens)]


def hand_out(batch: Batch) -> NDArray[np.int32]:
    """The items [items, words] in the order of their tickets, each of which was drawn once."""
    most = sum(-(-max(length, 0) // TILE_M) + 1 for length in batch.lens_q) * batch.heads_q + 64
    out, counter = torch.zeros(most, WORDS, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    given = {
        "cu_seqlens_q": [0, *np.cumsum(batch.lens_q)] if batch.ragged_q else [],
        "cu_seqlens_k": [0, *np.cumsum(batch.lens_k)],
        "seqused_q": batch.used_q,
        "seqused_k": batch.used_k,
    }
    tensors = {name: torch.tensor(values, dtype=torch.int32) for name, values in given.items() if len(values)}
    block, owner = aligned_block()
    for name, tensor in (*tensors.items(), ("out", out), ("work_counter", counter)):
        setattr(block, name, tensor.data_ptr())
    block.batch, block.heads_q, block.heads_kv = len(batch.lens_q), batch.heads_q, batch.heads_kv
    block.heads_in_l2, block.requests_in_l2 = batch.section, batch.requests
    block.len_q = batch.most_q if batch.ragged_q else batch.lens_q[0]
    block.len_k = batch.most_k
    block.decode_more_keys = batch.more_keys
    block.decode_always_rows, block.decode_most_rows, block.decode_keys_per_row = batch.decoded
    ranges = [(tensor.data_ptr(), 4 * tensor.numel()) for tensor in (*tensors.values(), out, counter)]
    kernel().launch(block, batch.grid, 128, 0, seed=batch.seed, ranges=ranges)
    del owner
    assert int(counter) == 0, "the counter is set back"
    drawn = out.numpy()
    items = drawn[: int((drawn[:, 0] > 0).sum())]
    assert (items[:, 0] == 1).all() and not drawn[len(items) :].any(), "every ticket is drawn once, none is left out"
    return items


def is_decoded(batch: Batch, rows: int, keys: int) -> bool:
    always, most, keys_per_row = batch.decoded
    packed = rows * batch.heads_q // batch.heads_kv
    if always == 0 or keys < rows + batch.more_keys:
        return False
    return packed <= always or (packed <= most and keys >= packed * keys_per_row)


def wanted(batch: Batch) -> Counter[tuple[int, int, int]]:
    """(request, head, first row) of every tile."""
    lengths = zip(batch.true_q, batch.true_k, strict=True)
    return Counter(
        (request, head, row)
        for request, (length, keys) in enumerate(lengths)
        if not is_decoded(batch, length, keys)
        for head in range(batch.heads_q)
        for row in range(0, length, TILE_M)
    )


def check(batch: Batch) -> NDArray[np.int32]:
    """Every tile once, with its request's lengths and offsets."""
    items = hand_out(batch)
    assert Counter(map(tuple, items[:, [BATCH, HEAD, ROW0]].tolist())) == wanted(batch)
    starts_q = np.cumsum([0, *batch.lens_q]) if batch.ragged_q else np.zeros(len(batch.lens_q) + 1, int)
    starts_k = np.cumsum([0, *batch.lens_k])
    for column, values in (
        (LEN_Q, batch.true_q),
        (LEN_K, batch.true_k),
        (Q_OFFSET, starts_q),
        (K_OFFSET, starts_k),
    ):
        assert np.array_equal(items[:, column], np.asarray(values)[items[:, BATCH]]), column
    return items


LENGTHS = st.one_of(st.sampled_from((0, 0, 1, 127, 128, 129, 700)), st.integers(0, 400))


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    lens_q = tuple(draw(st.lists(LENGTHS, min_size=1, max_size=80)))
    group, heads_kv = draw(st.sampled_from(((1, 1), (2, 3), (3, 2), (1, 5))))
    return Batch(
        lens_q,
        tuple(draw(st.lists(LENGTHS, min_size=len(lens_q), max_size=len(lens_q)))),
        heads_q=group * heads_kv,
        heads_kv=heads_kv,
        section=draw(st.integers(1, heads_kv)),
        requests=draw(st.sampled_from((1, 2, 7, 31, 32))),
        grid=draw(st.sampled_from((1, 2, 5, 40))),
        used_q=tuple(draw(st.lists(LENGTHS, min_size=len(lens_q), max_size=len(lens_q))))
        if draw(st.booleans())
        else (),
        used_k=tuple(draw(st.lists(LENGTHS, min_size=len(lens_q), max_size=len(lens_q))))
        if draw(st.booleans())
        else (),
        most_q=draw(st.sampled_from((BIG, 700, 200, 128, 1, 0))),
        most_k=draw(st.sampled_from((BIG, 100))),
        more_keys=draw(st.sampled_from((-BIG - 1, 1))),
        decoded=draw(st.sampled_from(((0, 0, 0), (0, 0, 0), (64, 256, 16), (150, 400, 1)))),
        seed=draw(st.integers(0, 3)),
    )


@settings(max_examples=60, deadline=None)
@given(batches())
@example(Batch((0,), (5,)))
@example(Batch((0,) * 70, (5,) * 70, requests=7, grid=5))
@example(Batch((1,), (0,), grid=40))
@example(Batch((0, 0, 129), (1, 1, 1), heads_q=4, heads_kv=4, requests=1))
@example(Batch((50, -20, 300), (50, -20, 300), used_q=(60, 10, -5)))
@example(Batch((32, 33, 33, 128, 129), (0, 1055, 1056, 4096, 9999), decoded=(64, 256, 16)))
@example(Batch((32, 32), (0, 1), grid=40, decoded=(64, 256, 16)))
@example(Batch((7, 7, 7, 0), (7, 8, 0, 0), decoded=(64, 256, 16), more_keys=1))
def test_every_tile_is_handed_out_once(batch: Batch) -> None:
    check(batch)


def test_thousands_of_short_requests() -> None:
    lens = tuple(16 if index % 97 else 300 for index in range(4000))
    check(Batch(lens, lens, heads_q=1, grid=7))


@pytest.mark.parametrize("used", [(), (300, 300, 0, 17), (1000, -4, 128, 129)])
def test_requests_of_one_length(used: tuple[int, ...]) -> None:
    """A batched q: in arithmetic order, or walked where each request uses rows of its own number."""
    lens = (300,) * 4
    items = hand_out(Batch(lens, lens, ragged_q=False, used_q=used, heads_q=4, heads_kv=2, section=2))
    batch = Batch(lens, lens, used_q=used, heads_q=4, heads_kv=2)
    assert Counter(map(tuple, items[:, [BATCH, HEAD, ROW0]].tolist())) == wanted(batch)
    assert not items[:, Q_OFFSET].any()
    assert np.array_equal(items[:, LEN_Q], np.asarray(batch.true_q)[items[:, BATCH]])


def test_requests_of_one_length_of_which_some_are_decoded() -> None:
    """By keys enough for 2 x 100 packed rows: those are no tiles of prefill."""
    batch = Batch((100,) * 4, (3200, 3199, 9000, 5), ragged_q=False, decoded=(64, 256, 16), grid=2)
    items = hand_out(batch)
    assert Counter(map(tuple, items[:, [BATCH, HEAD, ROW0]].tolist())) == wanted(batch)
    assert set(items[:, BATCH].tolist()) == {1, 3}


def test_longest_tiles_come_first_among_heads_and_requests_that_share_l2() -> None:
    """Sections of 4 requests and 2 of 3 kv heads: one after the other, each from its longest tiles down."""
    lens = (130, 900, 0, 260, 64, 64, 1000, 513, 20, 40)
    items = check(Batch(lens, lens, heads_q=6, heads_kv=3, section=2, requests=4, grid=1))
    sections = np.stack([items[:, BATCH] // 4, items[:, HEAD] // 4], axis=1)
    order = [tuple(map(int, section)) for section in sections]
    assert order == sorted(order), "requests before heads"
    for section in set(order):
        rows = items[(sections == section).all(axis=1), ROW0]
        assert (np.diff(rows) <= 0).all(), f"section {section}: {rows.tolist()}"


def test_heads_of_a_tile_are_neighbours() -> None:
    """They share keys and values, so they run at about the same time."""
    items = check(Batch((300, 300, 100), (300, 300, 100), heads_q=6, heads_kv=3, section=2, grid=1))
    tiles = [tuple(row) for row in items[:, [BATCH, ROW0]].tolist()]
    runs = 1 + sum(first != second for first, second in pairwise(tiles))
    assert runs == 2 * len(set(tiles)), "one run for the first two kv heads, one for the third"
