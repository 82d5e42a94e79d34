"""How thresholds follow from a share to be skipped and a length: what a calibration found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ...errors import expected
from .base import Model

_STEPS = 200  # of shares, between which what is expected is read
Floats = NDArray[np.float64]


class Rule(NamedTuple):
    """``threshold = factor / len_k ** length_power``."""

    factor: float
    length_power: float

    def threshold(self, len_k: float) -> float:
        """The final one at a length; 1 or more means that the share cannot be had there."""
        return self.factor / math.pow(len_k, self.length_power)


class Curve(Model):
    """What was skipped at one length.

    Attributes:
        length: keys.
        thresholds: final ones, rising.
        shares: of the tiles, rising.
    """

    length: float = Field(ge=1)
    thresholds: tuple[float, ...] = Field(min_length=2)
    shares: tuple[float, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if len(self.thresholds) != len(self.shares):
            raise expected("curves.shares", f"{len(self.thresholds)}, one for each threshold", len(self.shares))
        for name in ("thresholds", "shares"):
            values = getattr(self, name)
            if values[0] < 0 or any(low >= high for low, high in pairwise(values)):
                raise expected(f"curves.{name}", "rising, from 0 on", list(values))
        return self

    def reaches(self, share: float) -> bool:
        """Whether a share lies between those that were seen."""
        return self.shares[0] <= share <= self.shares[-1]

    def threshold(self, share: float) -> float:
        """That skips a share which it reaches: shares go with the logarithm of the threshold."""
        return math.exp(float(np.interp(share, self.shares, np.log(self.thresholds))))


class Fit(Model):
    """``threshold = a * exp(b * S) / len_k ** length_power`` skips the share S of the tiles.

    With a ``length_power`` of 1 it is the public form, of which ``a * exp(b * S)`` is the scale factor. With ``curves``
    the formula is for shares that none of them reaches: elsewhere the threshold of each length is read from its curve,
    and the power is the slope of these over the lengths, so it is another for each share. (Measured on SmolLM2, on
    texts and lengths that no fit had seen: bench/NOTES.md, "models".)

    Attributes:
        curves: what was skipped, at each of a few lengths.
        sparsity: the shares between which it was observed.
        lengths: the lengths (keys) between which it was observed.
        residual: root mean square of observed less fitted shares.
        heldout_error: the same on samples that the fit had not seen.
        heldout_length_error: the same on lengths that the fit had not seen.
        intervals: bounds of a and b (and length_power) that hold 95 % of the fits to resampled samples.
    """

    a: float = Field(gt=0)
    b: float = Field(gt=0)
    length_power: float = Field(default=1.0, ge=0)
    curves: tuple[Curve, ...] = ()
    sparsity: tuple[float, float] | None = None
    lengths: tuple[int, int] | None = None
    residual: float | None = None
    heldout_error: float | None = None
    heldout_length_error: float | None = None
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)

    @property
    def is_public(self) -> bool:
        """Whether a and b say all of it, as other libraries read them."""
        return self.length_power == 1.0 and not self.curves

    def rule(self, target: float) -> Rule:
        """Of a share."""
        reaching = [curve for curve in self.curves if curve.reaches(target)]
        if not reaching:
            return Rule(self.a * math.exp(self.b * target), self.length_power)
        power = self._power(target)
        logs = [math.log(curve.threshold(target)) + power * math.log(curve.length) for curve in reaching]
        return Rule(math.exp(math.fsum(logs) / len(logs)), power)

    def _power(self, target: float) -> float:
        """How thresholds of a share fall with the length; of the nearest share that two curves reach."""
        if len({curve.length for curve in self.curves}) < 2:
            return self.length_power
        highest = sorted(curve.shares[-1] for curve in self.curves)[-2]
        lowest = sorted(curve.shares[0] for curve in self.curves)[1]
        near = max(min(target, highest), lowest)
        reaching = [curve for curve in self.curves if curve.reaches(near)]
        if len({curve.length for curve in reaching}) < 2:
            return self.length_power
        return max(-_slope([(curve.length, curve.threshold(near)) for curve in reaching]), 0.0)

    def threshold(self, target: float, len_k: int) -> float:
        """The final threshold for a share at a length; 1 or more means that it cannot be had there."""
        return self.rule(target).threshold(len_k)

    def share(self, threshold: float, len_k: float) -> float:
        """What it expects a threshold to skip, cut at 0 and 1."""
        return float(expected_shares(self, [threshold], [len_k])[0])


def expected_shares(fit: Fit, thresholds: Sequence[float], lengths: Sequence[float]) -> Floats:
    """What a fit expects each of ``thresholds [n]`` to skip at ``lengths [n]``, cut at 0 and 1."""
    shares = np.linspace(0.0, 1.0, _STEPS + 1)
    rules = np.array([fit.rule(float(share)) for share in shares])
    made = []
    for threshold, length in zip(thresholds, lengths, strict=True):
        # Where a curve ends, those that go on may tell a lower threshold for a higher share.
        logs = np.maximum.accumulate(np.log(rules[:, 0]) - rules[:, 1] * math.log(length))
        made.append(np.interp(math.log(threshold), logs, shares) if threshold > 0 else 0.0)
    return np.array(made)


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line through the logarithms, by least squares."""
    x, y = (np.log(np.asarray(values, dtype=np.float64)) for values in zip(*points, strict=True))
    centred = x - x.mean()
    return float((centred * (y - y.mean())).sum() / (centred**2).sum())
