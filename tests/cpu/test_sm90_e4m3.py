"""E4m3 prefill of SM90 on the emulator: kernel pairs, patterns, properties, and V on its way to the product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from skimattn.codegen.tiles import workspace

from tests.helpers.bodies import (
    DIMS_OF_E4M3,
    each_property,
    name,
    run_and_check,
    run_as_dealt,
    run_one_key,
    run_planted,
)
from tests.helpers.build import build
from tests.helpers.cases import Case, contents
from tests.helpers.catalogue import feature_covering, pairwise_cases
from tests.helpers.check import assert_same_bits, check
from tests.helpers.named_cases import device_cases, pattern_cases
from tests.helpers.properties import Target, repeated_runs
from tests.helpers.run import run_built, run_case

TARGET = Target("emulator", "sm90", "e4m3")
PAIRS = feature_covering(tuple(case for case in pairwise_cases() if case.dtype == "e4m3"))
PATTERNS = [replace(case, dtype="e4m3", descales="head") for case in pattern_cases()[::3]]
DEVICES = [replace(case, dtype="e4m3") for case in device_cases()]


@pytest.mark.parametrize("case", PAIRS, ids=name)
def test_kernel_pairs(case: Case) -> None:
    run_as_dealt(case)


@pytest.mark.parametrize("case", PATTERNS, ids=name)
def test_planted_patterns(case: Case) -> None:
    run_planted(case, "emulator")


@pytest.mark.parametrize("case", DEVICES, ids=name)
def test_values_that_only_a_device_meets(case: Case) -> None:
    run_and_check(case, "emulator")


@each_property([TARGET])
def test_property(target: Target, holds: Callable[[Target], None]) -> None:
    holds(target)


def test_schedules_seeds_and_grids_do_not_matter() -> None:
    schedules = [{"schedule": schedule, "seed": seed} for schedule in ("early", "late", "random") for seed in (0, 1)]
    repeated_runs(TARGET, [*schedules, {"sms": 1}, {"sms": 132}, {"heads_in_l2": 1}])


# ---- V on its way to the product


@pytest.mark.parametrize("dims", DIMS_OF_E4M3, ids=str)
def test_each_probability_meets_the_value_of_its_key(dims: tuple[int, int]) -> None:
    run_one_key(dims, "emulator")


def by_thread(tile: np.ndarray) -> np.ndarray:
    """V [64 or 128 keys, columns] as rows of a column's keys, each where P of that key is multiplied.

    From the PTX ISA alone. A thread of a quad has, of the scores of a row, columns 8 * j + 2 * t and the one after it.
    Four of them, in order, are a register of A, which is multiplied with rows 4 * t to 4 * t + 3 of B's first 16, the
    next register with those of its second 16, and so on.
    """
    rows = np.zeros_like(tile.T)
    for t in range(4):
        scores = [8 * j + 2 * t + i for j in range(len(tile) // 8) for i in range(2)]
        for register in range(len(scores) // 4):
            for byte in range(4):
                rows[:, 16 * register + 4 * t + byte] = tile[scores[4 * register + byte]]
    return rows


@pytest.mark.parametrize("layout", ["batched", "ragged", "nhd"])
@pytest.mark.parametrize("dims", [(128, 128), (64, 64), (256, 256)], ids=str)
def test_workspace_holds_v_transposed_and_zeros(dims: tuple[int, int], layout: str) -> None:
    """What lies there afterwards, byte by byte; places that no request needs are as they were."""
    lens = ((70, 300), (70, 37), (0, 129), (200, 140))
    case = Case("places", dtype="e4m3", mask="window", window=(100, 0), skip="dense", heads_q=2, heads_kv=2, lens=lens)
    case = replace(case, head_dim=dims[0], head_dim_v=dims[1], q_layout="ragged", kv_layout=layout, page_size=16)
    case = replace(case, seqused=layout == "batched")
    tile_n, held = case.tile_n, contents(case)
    built = build(case, held)
    space = torch.full((1 << 20,), 0x7F7F7F7F, dtype=torch.int32).view(torch.float32)
    check(run_built(built, "emulator", workspace=space), held)
    rows = dims[1] * tile_n // 128
    if layout == "ragged":
        places, tiles = 1, built.tensors["v"].shape[0] // tile_n + len(lens)
    else:
        places, tiles = len(lens), -(-300 // tile_n)
    got = space.view(torch.uint8)[: places * 2 * rows * tiles * 128].reshape(places, 2, rows, tiles, 128).numpy()
    wanted, start = np.full_like(got, 0x7F), 0
    for index, (len_q, len_k) in enumerate(lens):
        first = max(0, len_k - len_q - 100)  # that its first row sees
        v = held[index].v.view(torch.uint8).numpy().copy()
        v[:first] = 0
        for tile in range(first // tile_n, -(-len_k // tile_n)) if len_q else ():
            part = np.zeros((tile_n, 2, dims[1]), np.uint8)
            keys = v[tile * tile_n : (tile + 1) * tile_n]
            part[: len(keys)] = keys
            place, at = (0, start // tile_n + index + tile) if layout == "ragged" else (index, tile)
            for head in range(2):
                columns = by_thread(part[:, head]).reshape(-1, rows, tile_n).swapaxes(0, 1)
                wanted[place, head, :, at] = columns.reshape(rows, 128)
        start += len_k
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("layout", ["batched", "hnd"])
def test_rounds_share_the_workspace(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch whose V does not fit is computed in rounds, and has the same bits, also where requests are decode's."""
    lens = ((70, 300), (3, 300), (130, 37), (70, 0), (66, 200))
    case = Case("rounds", dtype="e4m3", heads_q=4, heads_kv=2, lens=lens, q_layout="ragged", seqused=True, skip="stat")
    case = replace(case, kv_layout=layout, page_size=32, pattern="alternating", mask="full", descales="head")
    case = replace(case, seqused=layout == "batched", stats_kind="batch")
    for phase in ("", "mixed"):
        mine = replace(case, phase=phase)
        together, held = run_case(mine, "emulator")
        check(together, held)
        for most in (100_000, 1):  # of 48 KB a request
            monkeypatch.setattr(workspace, "WORKSPACE_BYTES", most)
            few, _ = run_case(mine, "emulator", held, sms=4)
            check(few, held)
            assert_same_bits(f"rounds of {most} bytes", few, together)
        monkeypatch.undo()
    uniform = replace(case, q_layout="batched", lens=((130, 300),) * 3, seqused=False, skip="skip", name="uniform")
    monkeypatch.setattr(workspace, "WORKSPACE_BYTES", 1)
    run_and_check(uniform, "emulator", sms=2)
