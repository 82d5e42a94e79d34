"""The fit of skipped shares: ``threshold = a * exp(b * S) / len_k ** g``.

With g = 1 this is the public form (its factor a * exp(b * S) is BLASST's, arXiv 2512.12087, with the exponential that
ModelOpt calibrates). g is ours: at one factor a short text skips less than a long one.

In the logarithm it is a plane, ``S = (ln threshold + g * ln len_k - ln a) / b``. What is fitted is S, by least squares
in which a point weighs as many tiles as it visited, since shares are what is asked for and tiles what is saved. Where
texts that the fit has not seen come out better for it, curves take the plane's place: see :mod:`.curves`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import expected
from ..config.fit import Fit, expected_shares
from .curves import curves_of, with_curves
from .folds import Places, held_out_error
from .point import LEAST, MOST, Point

Floats = NDArray[np.float64]

_FOLDS = 5
_FEWEST = 3  # samples, for intervals


@dataclass(frozen=True)
class _Plane:
    """``S = constant + of_threshold * ln threshold + of_length * ln len_k``."""

    constant: float
    of_threshold: float
    of_length: float

    @property
    def values(self) -> tuple[float, float, float]:
        """a, b and the power of the length."""
        b = 1.0 / self.of_threshold
        with np.errstate(over="ignore"):
            return float(np.exp(-self.constant * b)), b, self.of_length * b

    def shares(self, columns: Floats) -> Floats:
        return self.constant + columns[:, 0] * self.of_threshold + columns[:, 1] * self.of_length


def fit_shares(
    points: Sequence[Point], *, length_term: bool = False, by_tiles: bool = True, resamples: int = 200, seed: int = 0
) -> Fit:
    """Fit points; those that skip less than 10 or more than 90 % do not take part.

    Args:
        points: of several thresholds, better of several samples and lengths too.
        length_term: fit the power of the length as well, and curves. The power stays 1, and curves are left out, where
            texts that the fit has not seen do not come out better for it: where lengths are few or near each other, it
            would say more of texts than of lengths.
        by_tiles: a point weighs as many tiles as it visited; else all weigh the same, and there are no curves.
        resamples: how many fits to resampled samples the intervals are of; 0: none.
        seed: of the resampling.

    Raises:
        ArgumentError: no two thresholds skip between 10 and 90 %, or more is skipped at lower ones.
    """
    used = [point for point in points if point.takes_part]
    if len({point.threshold for point in used}) < 2:
        shares = ", ".join(f"{point.share:.2f} at {point.threshold:g}" for point in list(points)[:8])
        wanted = f"at least two thresholds that skip {LEAST:.0%} to {MOST:.0%}"
        raise expected("points", wanted, shares or "none")
    data = _Data.of(used, by_tiles)
    names = [point.sample for point in used]
    term = length_term and _does_length_help(data, names)
    plane = data.plane(term)
    if plane is None:
        raise expected("points", "shares that rise with the threshold", "shares that do not")
    formula = _formula(plane, term)
    if formula is None:
        raise expected("points", "shares that rise clearly with the threshold", "shares that hardly do")
    typical = _typical_shares(used)
    lengths = [point.length for point in used]
    fit = Fit(
        a=formula.a,
        b=formula.b,
        length_power=formula.length_power,
        sparsity=(min(typical), max(typical)),
        lengths=(min(lengths), max(lengths)),
        residual=data.error(plane),
        heldout_error=_held_out(data, names, term, _FOLDS),
        heldout_length_error=_held_out(data, [str(length) for length in lengths], term, len(lengths)),
        intervals=_intervals(data, names, term, resamples, seed),
    )
    return with_curves(fit, points, lambda some: _plain(some, term)) if length_term and by_tiles else fit


def _plain(points: Sequence[Point], term: bool) -> Fit | None:
    """The formula alone; None if the points do not make one."""
    used = [point for point in points if point.takes_part]
    plane = _Data.of(used, by_tiles=True).plane(term) if len({point.threshold for point in used}) > 1 else None
    return None if plane is None else _formula(plane, term)


def _formula(plane: _Plane, term: bool) -> Fit | None:
    """What a plane says; None where its a is no float, as of points that hardly rise."""
    a, b, power = plane.values
    if not 0 < a < math.inf:
        return None
    return Fit(a=a, b=b, length_power=max(power, 0.0) if term else 1.0)


def _does_length_help(data: _Data, names: Sequence[str]) -> bool:
    with_it, without = (_held_out(data, names, term, _FOLDS) for term in (True, False))
    return with_it is not None and without is not None and with_it < without


def _typical_shares(points: Sequence[Point]) -> list[float]:
    """Shares of all texts of one length at one threshold together: what can be asked for is not what one text did."""
    sums: dict[tuple[int, float], tuple[int, int]] = {}
    for point in points:
        visited, skipped = sums.get((point.length, point.threshold), (0, 0))
        sums[point.length, point.threshold] = visited + point.visited, skipped + point.skipped
    return [skipped / visited for visited, skipped in sums.values()]


@dataclass(frozen=True)
class _Data:
    """Points as arrays: ln threshold and ln length ``[n, 2]``, shares and weights ``[n]``."""

    columns: Floats
    shares: Floats
    weights: Floats

    @staticmethod
    def of(points: Sequence[Point], by_tiles: bool) -> _Data:
        columns = np.log(np.array([[point.threshold, point.length] for point in points], dtype=np.float64))
        weights = np.array([point.visited if by_tiles else 1 for point in points], dtype=np.float64)
        return _Data(columns, np.array([point.share for point in points]), weights / weights.sum())

    def take(self, index: NDArray[np.int64]) -> _Data:
        return _Data(self.columns[index], self.shares[index], self.weights[index])

    def plane(self, term: bool) -> _Plane | None:
        """The best one; None if it does not rise with the threshold, or points do not tell."""
        # Without a term of its own the length counts as a factor of the threshold.
        predictors = self.columns if term else self.columns.sum(axis=1, keepdims=True)
        root = np.sqrt(self.weights)[:, None]
        matrix = np.hstack([np.ones((len(self.shares), 1)), predictors]) * root
        found, _, rank, _ = np.linalg.lstsq(matrix, self.shares * root[:, 0], rcond=1e-10)
        if rank < matrix.shape[1] or found[1] <= 0:
            return None
        return _Plane(float(found[0]), float(found[1]), float(found[2] if term else found[1]))

    def error(self, plane: _Plane) -> float:
        """Root mean square, weighted, of observed less fitted shares."""
        weights = self.weights / self.weights.sum()
        return float(np.sqrt((weights * (self.shares - plane.shares(self.columns)) ** 2).sum()))


def _held_out(data: _Data, labels: Sequence[str], term: bool, most_folds: int) -> float | None:
    """The error of planes on points whose label they had not seen."""

    def judge(at_seen: Places, at_held: Places) -> tuple[float, float] | None:
        held, plane = data.take(at_held), data.take(at_seen).plane(term)
        return None if plane is None else (held.error(plane), float(held.weights.sum()))

    return held_out_error(labels, most_folds, judge)


def _resampled(data: _Data, labels: Sequence[str], term: bool, resamples: int, seed: int) -> list[_Plane]:
    names, random = sorted(set(labels)), np.random.default_rng(seed)
    if len(names) < _FEWEST:
        return []
    rows = {name: np.flatnonzero([label == name for label in labels]) for name in names}
    planes = []
    for _ in range(resamples):
        drawn = random.integers(len(names), size=len(names))
        plane = data.take(np.concatenate([rows[names[index]] for index in drawn])).plane(term)
        planes += [plane] if plane else []
    return planes


def _intervals(
    data: _Data, labels: Sequence[str], term: bool, resamples: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Of a, b and the power: what 95 % of the fits to samples drawn with replacement gave."""
    values = [plane.values for plane in _resampled(data, labels, term, resamples, seed)]
    if not values:
        return {}
    names = ("a", "b", "length_power") if term else ("a", "b")
    return {name: _middle([value[index] for value in values]) for index, name in enumerate(names)}


def share_interval(
    fit: Fit, points: Sequence[Point], target: float, length: int, *, resamples: int = 200, seed: int = 0
) -> tuple[float, float] | None:
    """What the fit's threshold for a share skips at a length, in 95 % of the fits to resampled samples.

    a and b vary together, so their own intervals do not tell this. None with fewer than 3 samples.
    """
    names = sorted({point.sample for point in points})
    if len(names) < _FEWEST:
        return None
    by_name = {name: [point for point in points if point.sample == name] for name in names}
    random, threshold, found = np.random.default_rng(seed), fit.threshold(target, length), []
    for _ in range(resamples):
        drawn = [point for index in random.integers(len(names), size=len(names)) for point in by_name[names[index]]]
        made = _plain(drawn, fit.length_power != 1.0)
        if made is not None:
            made = made.model_copy(update={"curves": curves_of(drawn) if fit.curves else ()})
            found.append(float(expected_shares(made, [threshold], [length])[0]))
    return _middle(found) if found else None


def _middle(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.percentile(np.asarray(values), [2.5, 97.5])
    return float(low), float(high)
