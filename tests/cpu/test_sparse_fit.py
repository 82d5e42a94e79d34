"""The fit: published factors, planes with known parameters, and what it says of its own error."""

from __future__ import annotations

import math

import numpy as np
import pytest
from skimattn import ArgumentError
from skimattn.sparse import Fit, Point, fit_shares
from skimattn.sparse.calibration.fit import share_interval

# Published factors of Qwen3-30B-A3B-Instruct-2507 by share: prefill, decode (shared/design/integrations.md).
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
PREFILL = (18.76, 44.37, 104.97, 248.40, 587.18, 1390.63, 3293.04, 7799.91, 18471.56)
DECODE = (0.32, 0.86, 2.30, 6.17, 16.52, 44.26, 118.62, 317.99, 852.20)
TILES = 10**6


def published(factors: tuple[float, ...], length: int) -> list[Point]:
    pairs = zip(SHARES, factors, strict=True)
    return [Point("x", length, factor / length, TILES, round(share * TILES)) for share, factor in pairs]


@pytest.mark.parametrize(("factors", "a", "b"), [(PREFILL, 7.93, 8.61), (DECODE, 0.12, 9.85)])
@pytest.mark.parametrize("by_tiles", [True, False])
def test_published_factors_are_reproduced(factors: tuple[float, ...], a: float, b: float, by_tiles: bool) -> None:
    fit = fit_shares(published(factors, 65536), by_tiles=by_tiles)
    assert (fit.a, fit.b, fit.length_power) == (pytest.approx(a, abs=0.015), pytest.approx(b, abs=0.01), 1)
    for share, factor in zip(SHARES, factors, strict=True):
        assert fit.rule(share).factor == pytest.approx(factor, rel=0.03)
    assert fit.residual is not None and fit.residual < 0.002 and fit.sparsity == (0.1, 0.9)
    assert fit.heldout_error is None and fit.intervals == {}, "one sample tells nothing of others"


def plane(
    a: float, b: float, power: float, lengths: tuple[int, ...], samples: int = 8, noise: float = 0.0, seed: int = 0
) -> list[Point]:
    """Points of texts that skip as the formula says, each a little more or less than the others."""
    random, points = np.random.default_rng(seed), []
    for sample in range(samples):
        offset = random.normal(scale=noise)
        length = lengths[sample % len(lengths)]
        for threshold in np.geomspace(1e-5, 0.9, 16):
            share = (math.log(threshold) + power * math.log(length) - math.log(a)) / b + offset
            skipped = round(min(max(share, 0), 1) * TILES)
            points.append(Point(str(sample), length, float(threshold), TILES, skipped))
    return points


@pytest.mark.parametrize("power", [0.5, 1.0, 2.1])
def test_the_length_term_is_found(power: float) -> None:
    points = plane(3.0, 9.0, power, (1024, 2048, 8192))
    fit = fit_shares(points, length_term=True)
    assert (fit.a, fit.b, fit.length_power) == pytest.approx((3.0, 9.0, power), rel=1e-3)
    assert fit.lengths == (1024, 8192) and fit.residual == pytest.approx(0, abs=1e-5)
    assert fit.heldout_length_error == pytest.approx(0, abs=1e-4)
    public = fit_shares(points)
    assert public.length_power == 1
    if power != 1:  # one number cannot say what changes with the length
        assert public.residual is not None and public.residual > 0.01
        assert public.heldout_length_error is not None and public.heldout_length_error > public.residual


def test_what_was_measured_on_a_model_is_told_by_one_length_term() -> None:
    """SmolLM2-135M on an H100, one threshold for all layers, two texts (shared/design/integrations.md)."""
    thresholds = (0.001, 0.01, 0.03, 0.1, 0.3, 0.6)
    measured = {
        2048: ((0.03, 0.14, 0.23, 0.34, 0.46, 0.56), (0.04, 0.15, 0.25, 0.35, 0.47, 0.57)),
        8192: ((0.22, 0.41, 0.52, 0.64, 0.75, 0.83), (0.22, 0.42, 0.53, 0.64, 0.75, 0.83)),
    }
    points = [
        Point(f"{length} {text}", length, threshold, TILES, round(share * TILES))
        for length, texts in measured.items()
        for text, shares in enumerate(texts)
        for threshold, share in zip(thresholds, shares, strict=True)
    ]
    own, public = fit_shares(points, length_term=True), fit_shares(points)
    assert own.length_power == pytest.approx(2.1, abs=0.1) and own.residual is not None and own.residual < 0.02
    assert public.residual is not None and public.residual > 0.05, "the public form is off by 7 points"
    for point in points:
        if point.share >= 0.1:
            assert own.share(point.threshold, point.length) == pytest.approx(point.share, abs=0.035)


def test_lengths_that_all_agree_leave_the_public_form() -> None:
    points = plane(3.0, 9.0, 1.0, (4096,))
    assert fit_shares(points, length_term=True) == fit_shares(points)


def test_errors_and_intervals_are_those_of_the_noise() -> None:
    noise, inside = 0.03, 0
    for seed in range(20):
        points = plane(5.0, 9.0, 1.0, (4096,), samples=12, noise=noise, seed=seed)
        fit = fit_shares(points, seed=seed)
        assert fit.heldout_error is not None and noise * 0.4 < fit.heldout_error < noise * 2
        low, high = fit.intervals["b"]
        assert low < fit.b < high
        between = share_interval(Fit(a=5.0, b=9.0), points, 0.5, 4096, seed=seed)
        assert between is not None
        inside += between[0] < 0.5 < between[1]
    assert inside >= 15, "of 20 intervals of 95 %"


def test_tiles_weigh() -> None:
    heavy = [Point("a", 1000, t, 1000, round(1000 * s)) for t, s in ((0.01, 0.3), (0.1, 0.6))]
    light = [Point("b", 1000, t, 1, 1) for t in (0.01, 0.1)]
    halves = [Point("c", 1000, t, 2, 1) for t in (0.01, 0.1)]
    assert fit_shares([*heavy, *light]).share(0.01, 1000) == pytest.approx(0.3), "all of it skipped takes no part"
    assert fit_shares([*heavy, *halves]).share(0.01, 1000) == pytest.approx(0.3, abs=0.001)
    assert fit_shares([*heavy, *halves], by_tiles=False).share(0.01, 1000) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        (
            (0.01, 0.02),
            r"^points: expected at least two thresholds that skip 10% to 90% \(got 0.01 at 0.1, 0.02",
        ),
        ((), r"^points: expected at least two thresholds that skip 10% to 90% \(got none"),
        ((0.6, 0.3), "^points: expected shares that rise with the threshold"),
    ],
)
def test_points_that_make_no_fit(shares: tuple[float, ...], words: str) -> None:
    points = [Point("a", 100, 0.1 * (at + 1), 100, round(100 * share)) for at, share in enumerate(shares)]
    with pytest.raises(ArgumentError, match=words):
        fit_shares(points)


def test_two_samples_make_no_interval() -> None:
    points = plane(5.0, 9.0, 1.0, (4096,), samples=2, noise=0.01)
    fit = fit_shares(points)
    assert fit.intervals == {} and share_interval(fit, points, 0.5, 4096) is None
