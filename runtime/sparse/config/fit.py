"""How thresholds follow from a share to be skipped and a length: what a calibration found."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ...errors import expected
from .base import Model

_STEPS = 100  # of shares, between which what is expected is read
_LARGEST = 700.0  # of which floats have the exponential
Floats = NDArray[np.float64]


class Rule(NamedTuple):
    """``threshold = factor / len_k ** length_power``."""

    factor: float
    length_power: float


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
        for name, least in (("thresholds", "above 0"), ("shares", "from 0 on")):
            values = getattr(self, name)
            first_is_fine = values[0] > 0 if name == "thresholds" else values[0] >= 0
            if not first_is_fine or values[-1] > 1 or any(low >= high for low, high in pairwise(values)):
                raise expected(f"curves.{name}", f"rising, {least} and at most 1", list(values))
        return self

    def log_threshold(self, share: float) -> float:
        """Of the threshold that skips a share: shares go with the logarithm; beyond the ends as in the parts there."""
        shares, logs = self.shares, [math.log(one) for one in self.thresholds]
        at = min(max(bisect_right(shares, share), 1), len(shares) - 1)
        slope = (logs[at] - logs[at - 1]) / (shares[at] - shares[at - 1])
        return logs[at - 1] + slope * (share - shares[at - 1])


class Fit(Model):
    """``threshold = a * exp(b * S) / len_k ** length_power`` skips the share S of the tiles.

    With a ``length_power`` of 1 it is the public form, of which ``a * exp(b * S)`` is the scale factor. With ``curves``
    the formula is for others: the threshold of a share is on the line, in the logarithms of threshold and length, that
    is nearest to what the curves say, so the power is another for each share. With one curve it is the formula's.
    (Measured on SmolLM2, on texts and lengths that no fit had seen: bench/NOTES.md, "Language models on an H100".)

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
        log_factor, power = self.log_rule(target)
        return Rule(math.exp(min(log_factor, _LARGEST)), power)

    def log_rule(self, target: float) -> tuple[float, float]:
        """The logarithm of the factor, which may be too large for a float, and the power."""
        if not self.curves:
            return math.log(self.a) + self.b * target, self.length_power
        x = np.log([curve.length for curve in self.curves])
        y = np.array([curve.log_threshold(target) for curve in self.curves])
        spread = ((x - x.mean()) ** 2).sum()
        slope = ((x - x.mean()) * (y - y.mean())).sum() / spread if spread > 0 else -self.length_power
        power = max(-float(slope), 0.0)
        return float(y.mean() + power * x.mean()), power

    def threshold(self, target: float, len_k: float) -> float:
        """The final threshold for a share at a length; 1 or more means that it cannot be had there."""
        log_factor, power = self.log_rule(target)
        return math.exp(min(log_factor - power * math.log(len_k), _LARGEST))

    def shortest(self, target: float) -> int:
        """Keys from which on a share can be had, as far as the rule tells; 0: at any length."""
        log_factor, power = self.log_rule(target)
        if power <= 0 or log_factor < 0:
            return 0
        return math.ceil(math.exp(min(log_factor / power, _LARGEST)))

    def share(self, threshold: float, len_k: float) -> float:
        """What it expects a threshold to skip, cut at 0 and 1."""
        return float(expected_shares(self, [threshold], [len_k])[0])


def expected_shares(fit: Fit, thresholds: Sequence[float], lengths: Sequence[float]) -> Floats:
    """What a fit expects each of ``thresholds [n]`` to skip at ``lengths [n]``, cut at 0 and 1."""
    shares = np.linspace(0.0, 1.0, _STEPS + 1)
    rules = np.array([fit.log_rule(float(share)) for share in shares])
    made = []
    for threshold, length in zip(thresholds, lengths, strict=True):
        logs = np.maximum.accumulate(rules[:, 0] - rules[:, 1] * math.log(length))
        made.append(np.interp(math.log(threshold), logs, shares) if threshold > 0 else 0.0)
    return np.array(made)
