"""The oracle against plain softmax attention and against skip decisions worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.helpers import oracle
from tests.helpers.oracle import Request, Rules, attend, visible_keys
from tests.helpers.oracle_e4m3 import round_e4m3

LN2 = math.log(2.0)


def one_head(
    score_rows: list[list[float]], threshold: float | None, tile_n: int = 2, **options: object
) -> oracle.Answer:
    """Attend with given scores: q is one-hot, k holds the scores, values are 0, 1, 2, ..."""
    s = np.array(score_rows, dtype=np.float64)
    q = np.eye(len(s))[:, None, :]
    k = s.T[:, None, :].copy()
    v = np.arange(s.shape[1], dtype=np.float64)[:, None, None]
    rules = Rules(**{"mask": "full", "scale": 1.0, "tile_n": tile_n, "group_rows": 2, **options})  # type: ignore[arg-type]
    return attend(rules, Request(q, k, v, None if threshold is None else np.array([threshold])))


@pytest.mark.parametrize("mask", ["full", "causal", "window", "chunked"])
@pytest.mark.parametrize("lens", [(5, 9), (9, 5), (7, 7), (1, 8)])
def test_dense_equals_plain_softmax(mask: str, lens: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((n, 2, 4)) for n in (lens[0], lens[1], lens[1]))
    rules = Rules(mask=mask, scale=0.5, tile_n=4, group_rows=4, window=(2, 1), chunk=3)
    got = attend(rules, Request(q, k, v))
    bias = torch.zeros(lens).masked_fill(~torch.from_numpy(visible_keys(rules, *lens)), float("-inf")).double()
    s = torch.einsum("ihd,jhd->hij", torch.from_numpy(q), torch.from_numpy(k)) * 0.5 + bias
    out = torch.einsum("hij,jhd->ihd", torch.softmax(s, dim=2).nan_to_num(0.0), torch.from_numpy(v))
    assert np.allclose(got.out, out.numpy(), atol=1e-12)
    assert np.allclose(got.lse, torch.logsumexp(s, dim=2).T.numpy(), atol=1e-12)


def test_visible_keys_by_hand() -> None:
    def seen(mask: str, len_q: int, len_k: int, **options: object) -> list[str]:
        rules = Rules(mask=mask, scale=1.0, tile_n=4, **options)  # type: ignore[arg-type]
        return ["".join("x" if bit else "." for bit in row) for row in visible_keys(rules, len_q, len_k)]

    assert seen("causal", 2, 4) == ["xxx.", "xxxx"]
    assert seen("causal", 4, 2) == ["..", "..", "x.", "xx"]
    assert seen("window", 3, 5, window=(1, 0)) == [".xx..", "..xx.", "...xx"]
    assert seen("window", 3, 3, window=(-1, 1)) == ["xx.", "xxx", "xxx"]
    assert seen("window", 4, 2, window=(0, 2)) == ["x.", "xx", "xx", ".x"]
    assert seen("chunked", 3, 5, chunk=3) == ["xxx..", "...x.", "...xx"]
    assert seen("chunked", 3, 2, chunk=2) == ["..", "x.", "xx"]
    assert seen("chunked", 4, 5, chunk=3, window=(1, 0)) == ["xx...", ".xx..", "...x.", "...xx"]
    assert seen("chunked", 4, 4, chunk=3, window=(-1, 1)) == ["xx..", "xxx.", "xxx.", "...x"]
    assert seen("chunked", 5, 4, chunk=2, window=(0, -1)) == ["....", "xx..", ".x..", "..xx", "...x"]


def test_sinks_softcap_alibi_by_hand() -> None:
    q, k, v = np.array([[[2.0]]]), np.array([[[1.0]], [[3.0]]]), np.array([[[1.0]], [[5.0]]])
    rules = Rules(mask="full", scale=1.0, tile_n=4, softcap=4.0, alibi=np.array([0.5]), sinks=np.array([1.0]))
    got = attend(rules, Request(q, k, v))
    s0, s1 = 4 * math.tanh(2 / 4) - 0.5, 4 * math.tanh(6 / 4)  # the row stands at key 1
    p0, p1 = math.exp(s0), math.exp(s1)
    assert got.out[0, 0, 0] == pytest.approx((p0 + 5 * p1) / (p0 + p1 + math.e))
    assert got.lse[0, 0] == pytest.approx(math.log(p0 + p1))


def test_skips_by_hand() -> None:
    # Three tiles of two keys; visited from the last: maxima 0, -3, -1 for row 0 and 0, -3, -5 for row 1.
    s = [[-1.0, -9.0, -3.0, -4.0, 0.0, -1.0], [-5.0, -6.0, -3.0, -8.0, -2.0, 0.0]]
    got = one_head(s, threshold=math.exp(-2.0))
    assert got.skip_map.tolist() == [[[1, 2, 1]]]  # row 0 holds on to tile 0, nobody to tile 1
    assert (got.visited.tolist(), got.skipped.tolist()) == ([3], [1])
    kept = np.array(s)[:, [0, 1, 4, 5]]
    assert np.allclose(got.lse[:, 0], np.log(np.exp(kept).sum(axis=1)))
    weights = np.exp(kept) / np.exp(kept).sum(axis=1, keepdims=True)
    assert np.allclose(got.out[:, 0, 0], weights @ np.array([0.0, 1.0, 4.0, 5.0]))


def test_maximum_runs_over_kept_tiles_only() -> None:
    # From the last: 0 kept, -3 skipped below e^-2, -4 is measured against 0, not against -3.
    assert one_head([[-4.0, -4.0, -3.0, -3.0, 0.0, 0.0]], math.exp(-2.0)).skip_map.tolist() == [[[2, 2, 1]]]
    # Rising scores are always kept, and only then the rest goes.
    rising = [[-9.0, -9.0, 5.0, 5.0, 0.0, 0.0]]
    assert one_head(rising, math.exp(-2.0)).skip_map.tolist() == [[[2, 1, 1]]]
    assert one_head(rising, math.exp(-2.0), order="forward").skip_map.tolist() == [[[1, 1, 2]]]
    sink = [[5.0, 5.0, 4.0, 4.0, 0.0, 0.0]]  # tile 0, then from the last: 0 is low against 5, 4 is not
    assert one_head(sink, math.exp(-2.0), order="sink_first").skip_map.tolist() == [[[1, 1, 2]]]
    assert one_head(sink, math.exp(-2.0)).skip_map.tolist() == [[[1, 1, 1]]]


@pytest.mark.parametrize(("factor", "want"), [(1.0, 1), (1.0 - 2.0**-15, 1), (1.0 + 2.0**-15, 2)])
def test_the_boundary_itself_is_kept(factor: float, want: int) -> None:
    got = one_head([[-3.0 * LN2, -20.0, 0.0, 0.0]], 2.0**-3 * factor, margin=0.0)
    assert got.skip_map.tolist() == [[[want, 1]]] and not got.ambiguous
    assert one_head([[-3.0 * LN2, -20.0, 0.0, 0.0]], 2.0**-3 * factor).ambiguous == [(0, 0, 0)]


def test_thresholds_outside_the_unit_interval() -> None:
    s = [[1.0, 1.0, -1.0, -1.0, 0.0, 0.0]]
    assert one_head(s, 1.0).skip_map.tolist() == [[[1, 2, 1]]]
    assert one_head(s, 50.0).skip_map.tolist() == [[[1, 2, 1]]]
    assert one_head([[0.0] * 4], 1.0, margin=0.0).skip_map.tolist() == [[[1, 1]]]  # equal maxima are kept
    for never in (0.0, -1.0, math.nan, None):
        assert one_head([[-1e30, -1e30, 0.0, 0.0]], never).skip_map.tolist() == [[[1, 1]]]


def test_rows_that_see_nothing_agree_and_masked_scores_do_not_vote() -> None:
    # Causal, 4 rows over 4 keys, tiles of 2: rows 0 and 1 see nothing of tile 1. Row 0's key 1 is masked and huge.
    s = [[0.0, 99.0, 99.0, 99.0], [0.0, 0.0, 99.0, 99.0], [-9.0, -9.0, 0.0, 99.0], [-9.0, -9.0, 0.0, 0.0]]
    got = one_head(s, 1e-3, mask="causal", group_rows=4)
    assert got.skip_map.tolist() == [[[1, 1]]]  # rows 0 and 1 have nothing else: their first tile stays
    lower = [s[2], s[3]]
    assert one_head(lower, 1e-3, mask="causal", group_rows=4).skip_map.tolist() == [[[2, 1]]]


def test_visited_tiles_are_those_the_group_sees() -> None:
    got = one_head([[0.0] * 8] * 4, 0.5, mask="window", window=(1, 0), group_rows=2)
    # Rows stand at keys 4..7: the first group sees keys 3..5, the second keys 5..7.
    assert (got.skip_map != 0).tolist() == [[[False, True, True, False], [False, False, True, True]]]
    blind = one_head([[0.0, 0.0]] * 4, 0.5, mask="causal", group_rows=2)
    assert blind.visited.tolist() == [1]  # rows 0 and 1 stand before key 0
    assert blind.out[:2].tolist() == [[[0.0]], [[0.0]]] and np.isneginf(blind.lse[:2]).all()


def test_custom_masks_may_skip_a_first_tile_that_nobody_sees() -> None:
    rules = Rules(mask="custom", scale=1.0, tile_n=2, group_rows=2)
    custom = np.array([[[True, True, False, False], [True, False, False, False]]])
    q, k, v = np.ones((2, 1, 1)), np.ones((4, 1, 1)), np.ones((4, 1, 1))
    got = attend(rules, Request(q, k, v, np.array([0.5]), custom))
    assert got.skip_map.tolist() == [[[1, 2]]]
    assert attend(rules, Request(q, k, v, np.array([0.0]), custom)).skip_map.tolist() == [[[1, 1]]]


def test_nan_is_never_skipped_and_poisons_its_rows_only() -> None:
    s = [[-50.0, math.nan, 0.0, 0.0], [-50.0, -50.0, 0.0, 0.0]]
    got = one_head([s[0]], 0.5)
    assert got.skip_map.tolist() == [[[1, 1]]] and np.isnan(got.lse).all() and np.isnan(got.out).all()
    # One-hot queries meet NaN * 0 in the plain product, so the second row is given by a mask.
    rules = Rules(mask="custom", scale=1.0, tile_n=2, group_rows=2)
    custom = np.array([[[True, True, True, True], [True, False, True, True]]])
    q, k, v = np.ones((2, 1, 1)), np.array(s[:1]).T[:, None, :].copy(), np.ones((4, 1, 1))
    got = attend(rules, Request(q, k, v, np.array([0.5]), custom))
    assert got.skip_map.tolist() == [[[1, 1]]]
    assert np.isnan(got.lse[0, 0]) and np.isfinite(got.lse[1, 0])


def test_empty_requests_visit_nothing() -> None:
    rules = Rules(mask="full", scale=1.0, tile_n=2)
    got = attend(rules, Request(np.ones((3, 2, 4)), np.ones((0, 1, 4)), np.ones((0, 1, 4)), np.full(2, 0.5)))
    assert (got.out == 0).all() and np.isneginf(got.lse).all() and got.visited.tolist() == [0, 0]
    got = attend(rules, Request(np.ones((0, 2, 4)), np.ones((3, 1, 4)), np.ones((3, 1, 4)), np.full(2, 0.5)))
    assert got.out.shape == (0, 2, 4) and got.visited.tolist() == [0, 0]


def test_rounding_to_e4m3_is_torchs() -> None:
    rng = np.random.default_rng(2)
    values = np.concatenate([rng.uniform(0, 448, 2000), 2.0 ** rng.uniform(-14, 8, 4000), np.arange(0, 449) / 512])
    halfway = torch.arange(0, 0x7E, dtype=torch.uint8).view(torch.float8_e4m3fn).double().numpy()
    values = np.concatenate([values, (halfway[1:] + halfway[:-1]) / 2, [0.0, 448.0, 463.9]]).astype(np.float32)
    wanted = torch.from_numpy(values).to(torch.float8_e4m3fn).double().numpy()
    assert np.array_equal(round_e4m3(values.astype(np.float64)), wanted)
    assert round_e4m3(np.array([1e6]))[0] == 448.0 and np.isnan(round_e4m3(np.array([math.nan]))[0])


def test_8_bit_probabilities_by_hand() -> None:
    """Tile 0 first: measured from its own maximum, 0.1 there, then scaled; the sum adds what was not rounded."""
    s = [[0.0, -0.1, 0.3, -20.0]]
    got = one_head(s, None, order="forward", p_dtype="e4m3")
    assert got.rounded is not None and got.flips is not None
    first = [1.0, 224 / 256]  # 256 exp(-0.1) = 231.6, nearer to 224 than to 240
    second = [1.0, 0.0]  # 256 exp(-20.3) rounds to nothing
    decay, total = math.exp(-0.3), sum(math.exp(x - 0.3) for x in s[0])
    wanted = (decay * (first[0] * 0 + first[1] * 1) + second[0] * 2 + second[1] * 3) / total
    assert got.rounded[0, 0, 0] == pytest.approx(wanted, rel=1e-12)
    assert got.flips[0, 0, 0] == 0.0 and got.rounded[0, 0, 0] != pytest.approx(got.out[0, 0, 0], rel=1e-3)
    backwards = one_head(s, None, order="reverse", p_dtype="e4m3")
    assert backwards.rounded is not None and backwards.rounded[0, 0, 0] != pytest.approx(wanted, rel=1e-6)


def test_8_bit_probabilities_between_two_values_are_told() -> None:
    unsure = one_head([[0.0, math.log(232 / 256)]], None, p_dtype="e4m3")  # 232 lies between 224 and 240
    assert unsure.flips is not None and unsure.flips[0, 0, 0] == pytest.approx(16 / 256 / (1 + 232 / 256))


def test_8_bit_probabilities_of_blind_and_poisoned_rows() -> None:
    rules = Rules(mask="causal", scale=1.0, tile_n=2, group_rows=2, p_dtype="e4m3", sinks=np.array([0.5]))
    q, k, v = np.ones((3, 1, 1)), np.array([[[1.0]], [[math.nan]]]), np.ones((2, 1, 1))
    got = attend(rules, Request(q, k, v))
    assert got.rounded is not None
    assert got.rounded[0, 0, 0] == 0.0 and got.rounded[1, 0, 0] == pytest.approx(math.e / (math.e + math.exp(0.5)))
    assert np.isnan(got.rounded[2, 0, 0]) and np.isnan(got.out[2, 0, 0])
