"""Curves of a fit, held against what SmolLM2-135M skipped on texts and lengths that the fit had not seen."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from skimattn import ArgumentError
from skimattn.sparse import Curve, Fit, Point, SkipSoftmaxConfig, fit_shares
from skimattn.sparse.calibration.curves import curves_of
from skimattn.sparse.config.export import section_of

# One H100, 28 Nov 2026, all layers at one threshold (bench models): shares of calibration texts by length, ...
TRIED = (0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9)
SEEN = {
    "prefill": {
        1536: (0.004, 0.024, 0.051, 0.111, 0.193, 0.298, 0.404, 0.502, 0.566),
        3072: (0.015, 0.076, 0.138, 0.238, 0.345, 0.467, 0.579, 0.672, 0.728),
        6144: (0.073, 0.181, 0.266, 0.384, 0.499, 0.620, 0.726, 0.800, 0.843),
    },
    "decode": {
        1527: (0.028, 0.127, 0.223, 0.349, 0.459, 0.560, 0.657, 0.751, 0.800),
        3063: (0.070, 0.224, 0.331, 0.451, 0.548, 0.637, 0.715, 0.792, 0.842),
        6135: (0.186, 0.355, 0.446, 0.536, 0.608, 0.674, 0.740, 0.806, 0.848),
    },
}
# ... and (threshold, share) of texts that were kept for this.
HELD = {
    "prefill": {
        1024: ((0.0106, 0.064), (0.0495, 0.155), (0.169, 0.244), (0.421, 0.345), (0.887, 0.446), (0.99, 0.46)),
        2048: (
            (0.00531, 0.115),
            (0.0148, 0.193),
            (0.0298, 0.256),
            (0.101, 0.369),
            (0.303, 0.479),
            (0.675, 0.592),
            (0.99, 0.655),
        ),
        4096: (
            (0.00265, 0.156),
            (0.012, 0.285),
            (0.0361, 0.397),
            (0.119, 0.521),
            (0.315, 0.632),
            (0.895, 0.776),
            (0.99, 0.79),
        ),
        8192: ((0.00078, 0.214), (0.0058, 0.379), (0.0211, 0.509), (0.0597, 0.612), (0.153, 0.704), (0.542, 0.825)),
    },
    "decode": {
        1015: ((0.00158, 0.108), (0.00739, 0.25), (0.0488, 0.452), (0.079, 0.502), (0.379, 0.689), (0.99, 0.802)),
        2039: ((0.00065, 0.129), (0.00368, 0.288), (0.0243, 0.482), (0.0326, 0.507), (0.189, 0.654), (0.99, 0.851)),
        4087: ((0.000264, 0.16), (0.00183, 0.321), (0.0133, 0.505), (0.0942, 0.645), (0.612, 0.787), (0.676, 0.799)),
        8183: ((0.00011, 0.234), (0.00091, 0.379), (0.00669, 0.518), (0.0441, 0.625), (0.331, 0.745)),
    },
}
TILES = 10**6


def points_of(curves: dict[int, tuple[float, ...]], thresholds: tuple[float, ...] = TRIED) -> list[Point]:
    return [
        Point(str(length), length, threshold, TILES, round(share * TILES))
        for length, shares in curves.items()
        for threshold, share in zip(thresholds, shares, strict=True)
    ]


def errors_of(fit: Fit, phase: str) -> list[float]:
    """What texts that were kept skip more than was asked for, where that can be had."""
    found = []
    for target, (length, held) in itertools.product((0.2, 0.35, 0.5, 0.65), HELD[phase].items()):
        threshold, (tried, shares) = fit.threshold(target, length), zip(*held, strict=True)
        if threshold < 1:
            found.append(float(np.interp(math.log(threshold), np.log(tried), shares)) - target)
    return found


@pytest.mark.parametrize(("phase", "typical", "worst"), [("prefill", 0.018, 0.03), ("decode", 0.022, 0.05)])
def test_targets_are_met_on_lengths_between_and_beyond(phase: str, typical: float, worst: float) -> None:
    fit = fit_shares(points_of(SEEN[phase]), length_term=True)
    assert len(fit.curves) == 3 and not fit.is_public
    errors = errors_of(fit, phase)
    assert len(errors) >= 13
    assert np.sqrt(np.mean(np.square(errors))) < typical and max(map(abs, errors)) < worst, errors


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_more_is_asked_for_by_higher_thresholds_everywhere(phase: str) -> None:
    fit = fit_shares(points_of(SEEN[phase]), length_term=True)
    for length in (1024, 1500, 2000, 6135, 8192, 16384):
        thresholds = [fit.threshold(float(share), length) for share in np.linspace(0.1, 0.85, 400)]
        assert (np.diff(thresholds) > 0).all()
        for share in (0.15, 0.2, 0.5, 0.8):
            assert fit.share(fit.threshold(share, length), length) == pytest.approx(share, abs=0.005)


def test_the_formula_alone_meets_them_less_well_in_decode() -> None:
    fit = fit_shares(points_of(SEEN["decode"]), length_term=True).model_copy(update={"curves": ()})
    assert np.sqrt(np.mean(np.square(errors_of(fit, "decode")))) > 0.03


def test_one_curve_is_followed_and_lengths_are_as_the_formula_has_them() -> None:
    only = Fit(a=1.0, b=1.0, curves=(Curve(length=1000, thresholds=(0.01, 0.1), shares=(0.2, 0.4)),))
    assert only.threshold(0.2, 1000) == pytest.approx(0.01) and only.threshold(0.4, 1000) == pytest.approx(0.1)
    assert only.threshold(0.3, 1000) == pytest.approx(math.sqrt(0.001)), "shares go with the logarithm"
    assert only.threshold(0.3, 2000) == pytest.approx(math.sqrt(0.001) / 2), "one length tells nothing of others"
    assert only.threshold(0.5, 1000) == pytest.approx(math.sqrt(0.1)), "beyond it goes on as it was"
    assert only.threshold(0.1, 1000) == pytest.approx(math.sqrt(1e-5))


def test_the_power_is_that_of_the_share() -> None:
    short = Curve(length=1000, thresholds=(0.01, 0.1), shares=(0.1, 0.3))
    long = Curve(length=4000, thresholds=(0.01 / 16, 0.1 / 4), shares=(0.1, 0.3))
    fit = Fit(a=1.0, b=1.0, length_power=3.0, curves=(short, long))
    assert fit.rule(0.1).length_power == pytest.approx(2) and fit.rule(0.3).length_power == pytest.approx(1)
    for share, length, threshold in ((0.1, 1000, 0.01), (0.1, 4000, 0.01 / 16), (0.3, 2000, 0.05)):
        assert fit.threshold(share, length) == pytest.approx(threshold)
        assert fit.share(threshold, length) == pytest.approx(share, abs=0.005)


def test_of_three_lengths_the_nearest_line_is_taken() -> None:
    curves = [
        Curve(length=n, thresholds=(t, 10 * t), shares=(0.2, 0.4)) for n, t in ((1, 0.02), (10, 0.01), (100, 0.01))
    ]
    rule = Fit(a=1.0, b=1.0, curves=tuple(curves)).rule(0.2)
    assert rule.length_power == pytest.approx(math.log10(2) / 2)
    assert math.log10(rule.factor) == pytest.approx(math.log10(0.02) / 3 + math.log10(0.01) * 2 / 3 + math.log10(2) / 2)


def test_a_power_does_not_fall_below_0() -> None:
    curves = [Curve(length=n, thresholds=(t, 2 * t), shares=(0.2, 0.4)) for n, t in ((1000, 0.1), (2000, 0.4))]
    assert Fit(a=1.0, b=1.0, curves=tuple(curves)).rule(0.3).length_power == 0


def test_lengths_near_each_other_make_one_curve() -> None:
    points = points_of({1000: (0.2, 0.4), 1200: (0.4, 0.6), 1300: (0.5, 0.7)}, (0.01, 0.1))
    first, second = curves_of(points)
    assert first.length == pytest.approx(math.sqrt(1000 * 1200)) and first.shares == pytest.approx((0.3, 0.5))
    assert second.length == pytest.approx(1300) and second.shares == pytest.approx((0.5, 0.7))


def test_of_thresholds_that_skip_the_same_the_last_is_taken() -> None:
    [curve] = curves_of(points_of({1000: (0.0, 0.0, 0.2, 0.2, 0.4)}, (0.001, 0.01, 0.1, 0.2, 0.3)))
    assert curve.thresholds == (0.01, 0.2, 0.3) and curve.shares == pytest.approx((0.0, 0.2, 0.4))
    [curve] = curves_of(points_of({1000: (0.1, 0.3, 0.2, 0.4)}, (0.01, 0.1, 0.2, 0.3)))
    assert curve.thresholds == (0.01, 0.2, 0.3) and curve.shares == pytest.approx((0.1, 0.25, 0.4)), "noise is levelled"
    assert curves_of(points_of({1000: (0.2, 0.1)}, (0.01, 0.1))) == ()


def test_what_a_formula_says_needs_no_curves() -> None:
    shares = [[0.1 * (step + 3 * math.log2(n / 1000)) for step in range(1, 6)] for n in (1000, 2000)]
    seen = dict(zip((1000, 2000), map(tuple, shares), strict=True))
    assert fit_shares(points_of(seen, (0.001, 0.003, 0.009, 0.027, 0.081)), length_term=True).curves == ()


def test_points_that_hardly_rise_leave_no_formula_behind() -> None:
    """Some of the points alone make an a of 0 (e^-1000 and less), which is no fit, and no reason to fail."""
    flat = {1000: (0.5, 0.5004, 0.5006), 2000: (0.5, 0.5003, 0.5005), 4000: (0.4, 0.6, 0.8)}
    fit = fit_shares(points_of(flat, (0.01, 0.03, 0.1)), length_term=True)
    assert fit.a > 0 and fit.heldout_error is not None


@pytest.mark.parametrize("shares", [(0.2, 0.201, 0.202), (0.5, 0.5004, 0.5006), (0.88, 0.8801, 0.8803)])
def test_shares_that_hardly_rise_make_a_fit_or_say_so(shares: tuple[float, ...]) -> None:
    """b is a thousand and more: its exponential is no float."""
    points = points_of(dict.fromkeys((1000, 2000, 4000), shares), (0.01, 0.03, 0.1))
    try:
        fit = fit_shares(points, length_term=True)
    except ArgumentError as error:
        assert str(error).startswith("points: expected shares that rise clearly with the threshold")
    else:
        assert fit.rule(1.0).factor > 0 and 0 <= fit.share(0.03, 2000) <= 1 and fit.shortest(0.9) >= 0


def test_the_shortest_length_at_which_a_share_can_be_had() -> None:
    fit = Fit(a=1.0, b=math.log(4000) / 0.5)
    assert fit.shortest(0.5) == pytest.approx(4000, abs=1) and fit.threshold(0.5, 3999) > 1 > fit.threshold(0.5, 4002)
    assert Fit(a=0.5, b=0.1, length_power=0.0).shortest(0.5) == 0


def test_configurations_keep_curves_and_give_others_the_formula() -> None:
    points = points_of(SEEN["prefill"])
    own, public = fit_shares(points, length_term=True), fit_shares(points)
    config = SkipSoftmaxConfig(target_sparsity={"prefill": 0.5}, fit={"prefill": own}, public_fit={"prefill": public})
    section = section_of(config)
    assert section["config_groups"]["group_0"]["threshold_scale_factor"]["prefill"] == {"a": public.a, "b": public.b}
    assert len(section["skimattn"]["fit"]["prefill"]["curves"]) == 3
    with pytest.raises(ArgumentError, match=r"^public_fit.prefill.curves: expected none: other libraries read a and b"):
        SkipSoftmaxConfig(public_fit={"prefill": own.model_copy(update={"length_power": 1.0})})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"thresholds": (0.1, 0.1)}, r"curves.thresholds: expected rising, above 0 and at most 1 \(got \[0.1, 0.1\]\)"),
        ({"thresholds": (0.0, 0.1)}, r"curves.thresholds: expected rising, above 0 and at most 1 \(got \[0.0, 0.1\]\)"),
        ({"shares": (0.3, 0.2)}, r"curves.shares: expected rising, from 0 on and at most 1 \(got \[0.3, 0.2\]\)"),
        ({"shares": (0.3, 2)}, r"curves.shares: expected rising, from 0 on and at most 1 \(got \[0.3, 2.0\]\)"),
        ({"shares": (0.2, 0.3, 0.4)}, r"curves.shares: expected 2, one for each threshold \(got 3\)"),
    ],
)
def test_curves_that_are_refused(values: dict[str, tuple[float, ...]], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        Curve(**({"length": 1000, "thresholds": (0.1, 0.2), "shares": (0.2, 0.3)} | values))
