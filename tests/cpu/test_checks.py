"""The checks notice: each way to be wrong is made on purpose, in results of the reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.helpers.build import sentinel, whole
from tests.helpers.cases import Case, Content, contents, rules_of
from tests.helpers.check import Array, Result, check
from tests.helpers.large import run_large
from tests.helpers.named_cases import pattern_cases
from tests.helpers.oracle import Answer, decide, log2_threshold, scores, tile_maxima, visible_keys, visited_tiles
from tests.helpers.run import run_case

CASE = replace(pattern_cases()[0], memory="gaps", pattern="random", lens=((100, 400), (100, 400)))
EIGHT_BIT = replace(CASE, arch="sm100", dtype="e4m3", descales="head", lens=((200, 400), (200, 400)))
LOUD_CASES = [case for case in pattern_cases() if case.pattern in ("alternating", "single_row", "staircase", "lagging")]
Damage = Callable[[Result], None]


def zero_output(result: Result) -> None:
    result.tensors["out"].zero_()


def one_element(result: Result) -> None:
    out = result.tensors["out"]
    out[1, 70, 1, 5] += out[1, :, 1, 5].abs().max() * 2.0**-5


def rows_swapped(result: Result) -> None:
    out = result.tensors["out"]
    out[0, [3, 4]] = out[0, [4, 3]].clone()


def lse_off(result: Result) -> None:
    result.tensors["lse"][1, 99, 0] += 1e-3


def lse_in_base_2(result: Result) -> None:
    result.tensors["lse"].div_(math.log(2.0))


def one_tile(result: Result) -> None:
    result.tensors["skip_map"][0, 0, 1, 2] ^= 3


def unvisited_tile(result: Result) -> None:
    result.tensors["skip_map"][0, 0, 2, 0] = 1


def one_count(result: Result) -> None:
    result.tensors["stats"][-1, -1, 1] += 1


def counts_not_added(result: Result) -> None:
    result.tensors["stats"] -= 2**33


def byte_beside_a_row(result: Result) -> None:
    out = result.tensors["out"]
    flat = whole(out).view(out.dtype)
    flat[out.storage_offset() - 1] = 0.0


def row_not_written(result: Result) -> None:
    result.tensors["out"][1, 99] = sentinel(torch.bfloat16)


def nan_in_a_row(result: Result) -> None:
    result.tensors["out"][0, 0, 0, 0] = math.nan


DAMAGES: tuple[Damage, ...] = (
    zero_output,
    one_element,
    rows_swapped,
    lse_off,
    lse_in_base_2,
    one_tile,
    unvisited_tile,
    one_count,
    counts_not_added,
    byte_beside_a_row,
    row_not_written,
    nan_in_a_row,
)


@pytest.mark.parametrize("case", [CASE, EIGHT_BIT], ids=lambda case: case.dtype)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_noticed(damage: Damage, case: Case) -> None:
    result, held = run_case(case, "reference")
    expected = check(result, held)
    damage(result)
    with pytest.raises(AssertionError, match=case.name):
        check(result, held, expected)


@pytest.mark.parametrize("error", ["not rounded", "factor", "final maximum", "descale"])
def test_other_8_bit_arithmetic_is_noticed(error: str) -> None:
    """P in full precision, P without its factor, P measured from the last maximum, V as if its descale were 1."""
    case = replace(EIGHT_BIT, pattern="first", threshold_kind="float", thresholds=(0.0,))
    held = contents(case)
    result, _ = run_case(case, "reference", held)
    expected = check(result, held)
    for index, one in enumerate(held):
        answer = expected[index]
        out = answer.out if error == "not rounded" else answer.rounded
        assert out is not None
        if error == "descale":
            out = out / np.repeat(one.descales["v_descale"], case.heads_q // case.heads_kv)[None, :, None]
        if error in ("factor", "final maximum"):
            out = _rounded_otherwise(case, one, answer, 1.0 if error == "factor" else 256.0)
        result.rows("out", index).copy_(torch.from_numpy(out))
    with pytest.raises(AssertionError, match="bound"):
        check(result, held, expected)


def _rounded_otherwise(case: Case, one: Content, answer: Answer, factor: float) -> Array:
    """P times ``factor``, measured from each row's last maximum, in float64 but for the rounding."""
    out = answer.out.copy()
    for head in range(case.heads_q):
        kv = head * case.heads_kv // case.heads_q
        q, k, v = one.q[:, head].double(), one.k[:, kv].double(), one.v[:, kv].double()
        descale = {name: float(values[kv]) for name, values in one.descales.items()}
        s = q @ k.T * (case.softmax_scale * descale["q_descale"] * descale["k_descale"])
        s = s.masked_fill(~torch.from_numpy(answer.kept_keys[head]), -math.inf)
        p = torch.exp(s - s.amax(dim=1, keepdim=True))
        rounded = (p * factor).to(torch.float8_e4m3fn).double() / factor
        out[:, head] = (rounded @ v / p.sum(dim=1, keepdim=True) * descale["v_descale"]).numpy()
    return out


@pytest.mark.parametrize("skip", ["skip", "stat"])
@pytest.mark.parametrize("case", LOUD_CASES, ids=lambda case: case.name)
def test_a_kernel_that_skips_nothing_is_noticed(case: Case, skip: str) -> None:
    """Also without counts: what is skipped carries values large enough to show."""
    case = replace(case, skip=skip)
    held = contents(case)
    expected = check(run_case(case, "reference", held)[0], held)
    never, _ = run_case(replace(case, threshold_kind="float", thresholds=(0.0,)), "reference", held)
    with pytest.raises(AssertionError, match=case.name):
        check(never, held, expected)


def test_masked_scores_that_vote_are_noticed() -> None:
    """With the pattern ``masked``, a vote that is taken before the mask drops fewer tiles."""
    case = replace(CASE, mask="causal", pattern="masked", lens=((150, 500),), memory="plain")
    one, rules = contents(case)[0], rules_of(case)
    seen = visible_keys(rules, 150, 500)
    s = scores(rules, one.q[:, 0].double().numpy(), one.k[:, 0].double().numpy(), 0)
    limit, rows = log2_threshold(1e-3), slice(0, 64)
    tiles = visited_tiles(rules, seen[rows])
    votes = []
    for values in (np.where(seen, s, -np.inf), s):
        maxima, sees = tile_maxima(rules, values, seen)
        votes.append(decide(rules, tiles, maxima[rows], sees[rows], limit)[0])
    assert 2 in votes[0].values() and votes[0] != votes[1]


@pytest.mark.parametrize("mask", ["full", "causal", "window"])
def test_the_large_check_agrees_with_the_small_one(mask: str) -> None:
    case = replace(CASE, mask=mask, window=(200, 30) if mask == "window" else (-1, -1), memory="plain")
    result, held = run_case(case, "reference")
    expected = check(result, held)
    tally = run_large(case, "reference")
    assert tally.visited == sum(int(answer.visited.sum()) for answer in expected)
    assert tally.skipped == sum(int(answer.skipped.sum()) for answer in expected) > 0
    assert tally.close == 0 and 0.1 < tally.worst <= 1
