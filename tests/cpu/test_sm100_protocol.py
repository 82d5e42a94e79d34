"""The SM100 kernel's protocol: every pattern of skips over one to five key tiles, under many interleavings.

A run that ends well has shown no early read, early overwrite, race, missing fence or wait, deadlock or leak under its
interleaving, and exact maps and outputs. Races are found by vector clocks, also where the interleaving did not show it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from skimattn.codegen.emit import render_kernel
from skimattn.codegen.spec import KernelSpec

from tests.emulator import EmulatorError, compile_source
from tests.helpers.cases import Case
from tests.helpers.check import check
from tests.helpers.protocol import Bits, expected_map, protocol_case, skip_patterns
from tests.helpers.run import run_case

INTERLEAVINGS = [("late", 0), ("early", 0), ("random", 1), ("random", 2)]
MORE = [(schedule, seed) for schedule in ("late", "early", "random") for seed in range(3, 9)]
KINDS: dict[str, dict[str, object]] = {  # of rings: four V slots, two, one with O in Q's place, and 8-bit elements
    "d64": {},
    "d128": {"head_dim": 128, "head_dim_v": 128},
    "d192": {"head_dim": 192, "head_dim_v": 128},
    "d64-e4m3": {"dtype": "e4m3"},
}


def explore(patterns: tuple[Bits, ...], schedule: str, seed: int, sms: int = 4, **changes: Any) -> None:
    """Run all patterns as heads of one call and compare maps, counts and outputs."""
    options = {name: changes.pop(name) for name in ("kernel", "strict_products") if name in changes}
    case, held = protocol_case(patterns, **changes)
    result, _ = run_case(case, "emulator", held, schedule=schedule, seed=seed, sms=sms, **options)
    answers = check(result, held)
    assert np.array_equal(answers[0].skip_map, expected_map(patterns)), "the input is not what was meant"


@pytest.mark.parametrize(("schedule", "seed"), INTERLEAVINGS)
@pytest.mark.parametrize("tiles", [1, 2, 3])
def test_every_pattern_of_a_few_tiles(tiles: int, schedule: str, seed: int) -> None:
    explore(skip_patterns(tiles), schedule, seed)


@pytest.mark.parametrize(
    ("schedule", "seed"),
    [INTERLEAVINGS[1], *(pytest.param(*one, marks=pytest.mark.exhaustive) for one in INTERLEAVINGS[2:])],
)
def test_every_pattern_of_four_tiles(schedule: str, seed: int) -> None:
    explore(skip_patterns(4), schedule, seed)


@pytest.mark.parametrize(("schedule", "seed"), INTERLEAVINGS)
def test_drawn_patterns_of_five_tiles(schedule: str, seed: int) -> None:
    explore(skip_patterns(5, most=20, seed=seed), schedule, seed)


@pytest.mark.parametrize("kind", KINDS)
def test_items_without_a_key_between_others(kind: str) -> None:
    """A warp that has nothing to do for an item sees its phases all the same, or waits in vain for a later one's."""
    options: dict[str, Any] = {"head_dim": 64, "head_dim_v": 64, **KINDS[kind]}
    lens = ((300, 0), (512, 0), (260, 130), (40, 0), (256, 0), (300, 300), (30, 0), (280, 0))
    case = Case("no-keys", arch="sm100", q_layout="ragged", kv_layout="ragged", lens=lens, mask="causal", **options)
    for schedule, seed in (*INTERLEAVINGS, *(("random", seed) for seed in range(3, 9))):
        result, held = run_case(case, "emulator", schedule=schedule, seed=seed, sms=1)
        check(result, held)


@pytest.mark.parametrize("kind", [name for name in KINDS if name != "d64"])
def test_other_rings(kind: str) -> None:
    for schedule, seed in INTERLEAVINGS[1:3]:
        explore(skip_patterns(4, most=12, seed=seed), schedule, seed, **KINDS[kind])


@pytest.mark.parametrize("keys", [1, 77])
def test_a_last_tile_whose_values_end_early(keys: int) -> None:
    """Its V has a tail to clear, in a slot that a skipped tile may have left unused."""
    for schedule, seed in (("late", 1), ("random", 2)):
        explore(skip_patterns(3), schedule, seed, keys_of_last=keys)


def test_one_item_per_cta_and_all_in_one() -> None:
    for sms in (1, 16):
        explore(skip_patterns(3), "random", 5, sms=sms)


@cache
def unordered(spec: KernelSpec) -> Any:
    """The kernel that waits for P.V before S is written over P."""
    text = render_kernel(spec)
    assert text.count("kOrderedProducts = true") == 1
    return compile_source(spec.name, text.replace("kOrderedProducts = true", "kOrderedProducts = false"))


def test_issue_order_is_what_the_kernel_rests_on() -> None:
    """With the ISA's promises alone the emulator reports it, wherever a kept tile is followed by another."""
    with pytest.raises(EmulatorError) as caught:
        explore(skip_patterns(2), "late", 0, strict_products=True)
    assert caught.value.kind == "early-overwrite", caught.value
    assert "tcgen05_mma" in caught.value.message


@pytest.mark.parametrize("kind", KINDS)
def test_without_that_assumption(kind: str) -> None:
    """``ordered_products = False`` passes where the ISA's promises are all there is."""
    patterns = skip_patterns(3)
    kernel = unordered(protocol_case(patterns, **KINDS[kind])[0].spec)
    for schedule, seed in INTERLEAVINGS[:3:2]:
        explore(patterns, schedule, seed, kernel=kernel, strict_products=True, **KINDS[kind])


@pytest.mark.exhaustive
@pytest.mark.parametrize(("schedule", "seed"), MORE)
@pytest.mark.parametrize("kind", KINDS)
def test_more_interleavings(kind: str, schedule: str, seed: int) -> None:
    for tiles in (1, 2, 3, 4):
        explore(skip_patterns(tiles), schedule, seed, sms=1 + seed, **KINDS[kind])


@pytest.mark.exhaustive
@pytest.mark.parametrize("schedule", ["late", "early", "random"])
def test_every_pattern_of_five_tiles(schedule: str) -> None:
    explore(skip_patterns(5), schedule, 1)
