"""Curves of skipped shares, a length each: what the exponential of a fit leaves of real texts.

Shares rise more slowly than any exponential where thresholds come near to 1, and the power with which thresholds fall
over lengths is another for each share. Curves have neither in them; what they say between lengths is read from a line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ..config.fit import Curve, Fit, expected_shares
from .folds import Places, held_out_error
from .isotonic import rising
from .point import Point

_BIN = 1.25  # lengths of one curve differ by less
_FOLDS, _LENGTH_FOLDS = 5, 8
_NEGLIGIBLE, _BETTER = 0.005, 0.9  # errors of a formula that is kept: its own, or by that of curves
Refit = Callable[[Sequence[Point]], Fit | None]


def curves_of(points: Sequence[Point]) -> tuple[Curve, ...]:
    """A curve for the texts of each length, or of lengths near each other, where two thresholds or more tell."""
    made = []
    for near in _bins(points):
        tiles: dict[float, tuple[int, int]] = {}
        for point in near:
            visited, skipped = tiles.get(point.threshold, (0, 0))
            tiles[point.threshold] = visited + point.visited, skipped + point.skipped
        tried = sorted(one for one in tiles if one > 0 and tiles[one][0])
        never_falling = rising([min(max(tiles[one][1] / tiles[one][0], 0.0), 1.0) for one in tried])
        # Of thresholds that skip the same the last one: up to there more of them skips nothing more.
        last = {float(share): threshold for threshold, share in zip(tried, never_falling, strict=True)}
        if len(last) > 1:
            shares, thresholds = tuple(last), tuple(last.values())
            weights = [point.visited for point in near]
            length = math.exp(np.average([math.log(point.length) for point in near], weights=weights))
            made.append(Curve(length=length, thresholds=thresholds, shares=shares))
    return tuple(made)


def _bins(points: Sequence[Point]) -> list[list[Point]]:
    bins: list[list[Point]] = []
    for point in sorted((one for one in points if one.visited and one.length > 0), key=lambda one: one.length):
        if not bins or point.length >= _BIN * bins[-1][0].length:
            bins.append([])
        bins[-1].append(point)
    return bins


def with_curves(fit: Fit, points: Sequence[Point], refit: Refit) -> Fit:
    """The fit with curves, if texts that it has not seen come out clearly better for them; else as it was.

    Args:
        fit: of the points.
        points: all there are.
        refit: makes such a fit of fewer points; None: it cannot.
    """

    def made(some: Sequence[Point]) -> Fit | None:
        base = refit(some)
        return None if base is None else base.model_copy(update={"curves": curves_of(some)})

    curved = fit.model_copy(update={"curves": curves_of(points)})
    if not curved.curves or fit.heldout_error is None or fit.heldout_error <= _NEGLIGIBLE:
        return fit
    held_out = _held_out(points, [point.sample for point in points], made, _FOLDS)
    if held_out is None or held_out > _BETTER * fit.heldout_error:
        return fit
    lengths = [str(point.length) for point in points]
    errors: dict[str, float | None] = {"residual": _error(curved, points), "heldout_error": held_out}
    errors["heldout_length_error"] = _held_out(points, lengths, made, _LENGTH_FOLDS)
    return curved.model_copy(update=errors)


def _error(fit: Fit, points: Sequence[Point]) -> float:
    """Root mean square, weighted by tiles, of observed less expected shares."""
    used = [point for point in points if point.takes_part]
    if not used:
        return 0.0
    expected = expected_shares(fit, [point.threshold for point in used], [point.length for point in used])
    squares = (np.array([point.share for point in used]) - expected) ** 2
    return math.sqrt(np.average(squares, weights=[point.visited for point in used]))


def _held_out(points: Sequence[Point], labels: Sequence[str], made: Refit, most_folds: int) -> float | None:
    """The error of such fits on points whose label they had not seen."""

    def judge(at_seen: Places, at_held: Places) -> tuple[float, float] | None:
        held, fit = [points[at] for at in at_held], made([points[at] for at in at_seen])
        return None if fit is None else (_error(fit, held), sum(point.visited for point in held if point.takes_part))

    return held_out_error(labels, most_folds, judge)
