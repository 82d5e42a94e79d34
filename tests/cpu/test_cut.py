"""How a batch of decoded requests is cut into parts: as many as there is room for, whatever their lengths."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from skimattn import Params
from skimattn._call.problem import Problem
from skimattn._call.validate import validate
from skimattn._launch.decode import Cutter
from skimattn.codegen.features import BY_NAME
from skimattn.codegen.metadata import Kernel
from skimattn.codegen.tiles.split import decodes

from tests.helpers.decode_plans import MIB, SMS, cut, ints, problem_of, rows_of

PARTS = (1, 4, 8)  # leaves of one


def most_parts(problem: Problem, kernel: Kernel, of_leaves: int) -> int:
    cutter = Cutter(problem, kernel, SMS)
    return cutter._parts(cutter._leaves(problem.len_q, problem.len_k), of_leaves)


@dataclass
class Split:
    """The leaves of one request, as core/split.cuh and core/mask.cuh say, written once more."""

    mask: str
    left: int
    right: int
    chunk: int
    tile_n: int
    leaf_keys: int

    def seen(self, at: int, keys: int) -> tuple[int, int]:
        if self.mask == "causal":
            return 0, min(at + 1, keys)
        if self.mask == "window":
            lo = max(0, at - self.left) if self.left >= 0 else 0
            return lo, min(keys, at + self.right + 1) if self.right >= 0 else keys
        if self.mask == "chunked":
            if at < 0:
                return 0, 0
            start = at // self.chunk * self.chunk
            return max(start, at - self.left), min(start + self.chunk, at + self.right + 1, keys)
        return 0, keys

    def parts(self, rows: int, keys: int) -> list[int]:
        """Leaves, twigs and branches."""
        first, last = self.seen(keys - rows, keys)[0], self.seen(keys - 1, keys)[1]
        first, last = (first // self.tile_n, -(-last // self.tile_n)) if last > first else (0, 0)
        size = self.leaf_keys // self.tile_n
        while -(-(last - first) // size) > 128:
            size *= 2
        first, last = first // size, max(-(-last // size), first // size + 1)
        return [-(-last // leaves) - first // leaves for leaves in PARTS]


def batches(choose: random.Random) -> Iterator[Problem]:
    """Calls whose requests may be shorter than their bounds."""
    while True:
        len_q = choose.choice((1, 1, 2, 3, 7, 16, 60, 250))
        len_k = choose.choice((1, 63, 64, 65, 257, 700, 4100, 8300, 33000, 70000, 140001))
        heads = (choose.choice((1, 4, 8)) * 2 if len_q < 250 else 2, 2)
        mask = choose.choice(("full", "causal", "window", "window", "chunked", "chunked", "custom"))
        more: dict[str, Any] = {"mask": mask}
        sides = (-1, 0, 1, 63, 64, 255, 256, 4095, 40000, *(choose.randrange(5000) for _ in range(9)))
        if mask == "window":
            more["window_size"] = choose.choice(sides), choose.choice(sides)
        elif mask == "chunked":
            more["chunk_size"] = choose.choice((1, 64, 256, 257, 4096, 1 << 30, *sides[9:])) or 1
            more["window_size"] = choose.choice(sides), choose.choice(sides)
        elif mask == "custom":
            width = -(-len_k // 32) * 4
            more["custom_mask"] = torch.zeros(1, 1, dtype=torch.uint8).expand(len_q, width).contiguous()
        lengths = torch.zeros(1, dtype=torch.int32)
        yield problem_of(len_q, len_k, heads, 1, choose.choice((64, 128)), seqused_q=lengths, seqused_k=lengths, **more)


def test_there_is_room_for_the_parts_of_every_request() -> None:
    """Or CTAs write over what others left, or beyond the workspace."""
    choose = random.Random(0)
    reached, met = 0, set()
    for problem, _ in zip(batches(choose), range(1500), strict=False):
        kernel = rows_of(problem)["decode"]
        room = [most_parts(problem, kernel, leaves) for leaves in PARTS]
        per_kv = problem.heads_q // problem.heads_kv
        leaf_keys = {64: 1024, 128: 512}[kernel.head_dim]
        split = Split(problem.mask, *problem.window, problem.chunk_size, kernel.tile_n, leaf_keys)
        most = [0, 0, 0]
        for _ in range(60):
            rows = choose.choice((problem.len_q, choose.randint(1, problem.len_q)))
            keys = choose.choice((problem.len_k, choose.randint(0, problem.len_k), min(problem.len_k, 4096 * 3 + 1)))
            if decodes(rows, keys, per_kv, has_cache=True):
                parts = split.parts(rows, keys)
                assert all(used <= there for used, there in zip(parts, room, strict=True)), (split, rows, keys, room)
                most = [max(pair) for pair in zip(parts, most, strict=True)]
        reached += most == room
        met.add((problem.mask, most[0] > 8))
    assert reached > 500, "room is hardly larger than what is used"
    assert met >= {(mask, many) for mask in BY_NAME["mask"].values for many in (False, True)}


@pytest.mark.parametrize(
    ("more", "leaves", "twigs"),
    [
        ({"len_k": 2}, 1, 1),
        ({"len_k": 512}, 1, 1),
        ({"len_k": 513}, 2, 1),
        ({"len_k": 4 * 512}, 4, 1),
        ({"len_k": 4 * 512 + 1}, 5, 2),
        ({"len_k": 1 << 16}, 128, 32),
        ({"len_k": 1 << 20}, 128, 32),
        ({"len_k": 1 << 20, "mask": "causal"}, 128, 32),
        # 2048 keys touch 33 tiles, which is 5 leaves of 8 if they start at a border, and else one more
        ({"len_k": 1 << 20, "mask": "window", "window_size": (2047, 0)}, 6, 3),
        ({"len_k": 1 << 20, "mask": "window", "window_size": (2047, -1)}, 129, 33),
        ({"len_k": 1 << 20, "mask": "chunked", "chunk_size": 2048}, 6, 3),
        ({"len_k": 1 << 16, "dim": 64}, 64, 16),  # leaves of 1024 keys
    ],
)
def test_parts_of_requests(more: dict[str, Any], leaves: int, twigs: int) -> None:
    problem = problem_of(**more)
    kernel = rows_of(problem)["decode"]
    assert [most_parts(problem, kernel, of_leaves) for of_leaves in (1, 4)] == [leaves, twigs]


@pytest.mark.parametrize(
    ("batch", "qheads_per_kv", "sm_count", "part_leaves"),
    [
        (1, 8, 132, 1),  # 128 leaves for 264 CTAs, most of which 32 twigs would leave without work
        (264, 8, 132, 8),  # 16 full waves
        (264, 64, 132, 8),
    ],
)
def test_how_many_leaves_are_computed_at_a_time(
    batch: int, qheads_per_kv: int, sm_count: int, part_leaves: int
) -> None:
    """131072 keys of one kv head are 128 leaves, in 32 twigs or 16 branches; two CTAs share a multiprocessor."""
    found = cut(problem_of(batch=batch, len_k=1 << 17, heads=(qheads_per_kv, 1)), sm_count)
    assert (found.part_leaves, found.parts) == (part_leaves, 128 // part_leaves)
    assert found.ctas == min(2 * sm_count, batch * found.parts)


def test_a_window_is_not_left_to_one_cta_in_three() -> None:
    """9 leaves that start anywhere: in parts of 8 one of them may be full, and the two others next to empty."""
    problem = problem_of(1, 32768, (16 * 4, 4), 16, mask="window", window_size=(4095, 0))
    found = cut(problem, 132)
    assert (found.part_leaves, found.parts) == (4, 4)


@pytest.mark.parametrize(
    ("batch", "heads", "len_k", "part_leaves"),
    [
        (32, 16, 8192, 1),  # two waves of a leaf, not one of four leaves on 64 of 132 multiprocessors
        (32, 128, 8192, 4),  # a wave of four leaves, as long as four waves of one, of which more is merged
        (1, 128, 32768, 1),
        (4, 128, 16384, 1),
    ],
)
def test_mla_is_cut_into_whole_waves(batch: int, heads: int, len_k: int, part_leaves: int) -> None:
    """Products take its time, so a CTA without work is lost; bench/NOTES.md has the measurement."""
    one = torch.zeros(1, 1, 1, 576, dtype=torch.bfloat16)
    cache = one.expand(batch, len_k, 1, 576)
    problem = validate(Params(one.expand(batch, 1, heads, 576), cache, cache[..., :512]))
    found = cut(problem)
    assert (found.part_leaves, found.parts) == (part_leaves, len_k // 1024 // part_leaves)


def test_the_workspace_is_bounded() -> None:
    """By rounds, whose requests share it one after the other."""
    choose, seen = random.Random(1), set()
    for _ in range(400):
        batch, len_q = choose.choice((1, 5, 64, 700, 5000)), choose.choice((1, 2, 8, 16))
        heads = choose.choice(((8, 1), (16, 2), (8, 8), (32, 32), (128, 8)))
        problem = problem_of(len_q, choose.choice((1, 300, 5000, 70000)), heads, batch, choose.choice((64, 128, 256)))
        if "decode" not in rows_of(problem):
            continue
        found = cut(problem, choose.choice((3, 132)))
        assert 4 * found.workspace_floats <= 256 * MIB
        assert found.requests * found.rounds >= batch > found.requests * (found.rounds - 1)
        states = found.requests * heads[1] * found.groups * found.parts
        row_floats = rows_of(problem)["decode"].head_dim_v + 4
        assert found.workspace_floats == states * found.part_rows * row_floats
        assert found.groups * 64 >= found.rows == min(256, len_q * heads[0] // heads[1])
        assert found.part_rows == min(found.rows, 64)
        seen.add((found.rounds > 1, found.part_leaves > 1))
    assert seen >= {(True, True), (False, True), (False, False)}


def test_one_request_that_is_too_large_is_a_round_of_its_own() -> None:
    found = cut(problem_of(256, 1 << 20, (512, 512), 3, 256))
    assert (found.requests, found.rounds) == (1, 3) and 4 * found.workspace_floats > 256 * MIB


def test_how_a_batch_is_cut_does_not_depend_on_what_the_device_knows() -> None:
    """Lengths on the device are not read: equal bounds, and as many keys in all, give equal cuts."""
    cuts = set()
    one = torch.zeros(1, 1, 128, dtype=torch.bfloat16)
    q, keys = one.expand(3, 8, 128), one.expand(50000, 2, 128)
    for lengths in ((10000, 0, 40000), (40000, 7, 9993), (20000, 20000, 10000)):
        cuts.add(cut(problem_of(len_k=40000, seqused_k=ints(*lengths), mask="causal")))
        offsets = {"cu_seqlens_q": ints(0, 1, 2, 3), "cu_seqlens_k": ints(0, lengths[0], sum(lengths[:2]), 50000)}
        cuts.add(cut(validate(Params(q, keys, keys, mask="causal", max_seqlen_q=1, max_seqlen_k=40000, **offsets))))
    assert len(cuts) == 1
