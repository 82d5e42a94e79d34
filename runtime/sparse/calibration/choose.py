"""Which threshold each unit gets: the most skipped tiles at the least cost, to a share or to a budget.

Skipped tiles and costs of units are added up. With a price ``mu`` for cost, every unit takes the threshold with the
largest ``skipped - mu * cost``, and ``mu`` is moved until the sum is what was asked for (a Lagrangian: no other choice
of the same cost skips more). What is left between two prices is filled unit by unit, the cheapest first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...errors import expected
from .isotonic import rising
from .profile import Floats, Profile

_STEPS = 8  # thresholds between two that were tried
_BELOW, _STEP = 3, 10.0  # times as many below the smallest one, each the step of the first two lower, or a tenth
_HALVINGS = 200
_PRICES = (1e-9, 1e12)


@dataclass(frozen=True)
class Choice:
    """Thresholds in the order of the profile's units, the share of all tiles that they skip, and the added cost."""

    thresholds: tuple[float, ...]
    share: float
    cost: float


def choose(profile: Profile, *, share: float | None = None, cost: float | None = None) -> Choice:
    """Choose a threshold for each unit.

    Args:
        profile: of the units, each alone.
        share: of all tiles, to be skipped at the least cost.
        cost: instead, the most that may be added, for the largest share.

    Raises:
        ArgumentError: the share cannot be reached with the thresholds that were tried.
    """
    if (share is None) == (cost is None):
        raise expected("share, cost", "one of them", "both or neither")
    offers = _Offers.of(profile)
    cheap, dear = offers.pick(_PRICES[1]), offers.pick(_PRICES[0])
    if share is not None and share > offers.share(dear):
        wanted = f"at most {offers.share(dear):.3f}, which the largest thresholds that were tried skip"
        raise expected("share", wanted, f"{share:.3f}")

    def is_enough(picked: NDArray[np.int64]) -> bool:
        """Whether it skips what was asked for, or costs more than is allowed."""
        if share is not None:
            return offers.share(picked) >= share
        return offers.cost(picked) > (cost or 0.0)

    low, high = _PRICES
    if not is_enough(dear):
        return offers.choice(dear)
    if is_enough(cheap):  # what costs nothing is more than was asked for
        return offers.choice(_filled(offers, np.zeros_like(cheap), cheap, share, cost))
    for _ in range(_HALVINGS):
        price = float(np.sqrt(low * high))
        picked = offers.pick(price)
        if is_enough(picked):
            low, dear = price, picked
        else:
            high, cheap = price, picked
    return offers.choice(_filled(offers, cheap, dear, share, cost))


@dataclass(frozen=True)
class _Offers:
    """Candidates of each unit: ``thresholds [C]``; ``skipped [U, C]`` as shares of all tiles; ``costs [U, C]``."""

    thresholds: Floats
    skipped: Floats
    costs: Floats

    @staticmethod
    def of(profile: Profile) -> _Offers:
        profile = _with_smaller(profile)
        tried = np.log(np.asarray(profile.thresholds))
        between = np.linspace(0, len(tried) - 1, (len(tried) - 1) * _STEPS + 1)
        grid = np.interp(between, np.arange(len(tried)), tried)

        dense = np.zeros((len(profile.units), 1))  # costs nothing and skips nothing
        skipped = np.maximum.accumulate(profile.skipped, axis=1) / profile.visited.sum()
        lines = np.stack([np.interp(grid, tried, row) for row in skipped])
        costs = np.stack([_power_laws(grid, tried, rising(np.maximum(row, 0.0))) for row in profile.cost])
        return _Offers(np.exp(np.r_[-np.inf, grid]), np.hstack([dense, lines]), np.hstack([dense, costs]))

    def pick(self, price: float) -> NDArray[np.int64]:
        picked: NDArray[np.int64] = np.argmax(self.skipped - price * self.costs, axis=1)
        return picked

    def share(self, picked: NDArray[np.int64]) -> float:
        return float(self.skipped[np.arange(len(picked)), picked].sum())

    def cost(self, picked: NDArray[np.int64]) -> float:
        return float(self.costs[np.arange(len(picked)), picked].sum())

    def choice(self, picked: NDArray[np.int64]) -> Choice:
        return Choice(tuple(float(one) for one in self.thresholds[picked]), self.share(picked), self.cost(picked))


def _with_smaller(profile: Profile) -> Profile:
    """With thresholds below those that were tried: else units that skip much at the smallest had to skip it or nothing.

    Shares go on in the line of the first two, and are 0 at the last one at the latest, or what skips as much at any
    threshold would seem to cost nothing. Costs fall with the threshold, as what is dropped does.
    """
    if len(profile.thresholds) < 2:
        return profile
    step = min(profile.thresholds[1] / profile.thresholds[0], _STEP)
    smaller = [profile.thresholds[0] / step**count for count in range(_BELOW, 0, -1)]
    slope = np.maximum(profile.skipped[:, 1] - profile.skipped[:, 0], profile.skipped[:, 0] / _BELOW)
    skipped = [np.maximum(profile.skipped[:, 0] - count * slope, 0.0) for count in range(_BELOW, 0, -1)]
    costs = [profile.cost[:, 0] / step**count for count in range(_BELOW, 0, -1)]
    return replace(
        profile,
        thresholds=(*smaller, *profile.thresholds),
        skipped=np.column_stack([*skipped, profile.skipped]),
        cost=np.column_stack([*costs, profile.cost]),
    )


def _power_laws(grid: Floats, tried: Floats, costs: Floats) -> Floats:
    """Costs between thresholds: a power of the threshold, as what is dropped is, or a line from where it is nothing.

    Shares go with the logarithm of the threshold, and lines between costs would make every tried threshold a corner.
    """
    line = np.interp(grid, tried, costs)
    power = np.exp(np.interp(grid, tried, np.log(np.maximum(costs, 1e-300))))
    after = np.clip(np.searchsorted(tried, grid), 1, len(tried) - 1)
    found: Floats = np.where((costs[after - 1] > 0) & (costs[after] > 0), power, line)
    return found


def _filled(
    offers: _Offers, cheap: NDArray[np.int64], dear: NDArray[np.int64], share: float | None, cost: float | None
) -> NDArray[np.int64]:
    """From the cheap picks towards the dear ones, where a tile costs least first, as far as was asked for."""
    units = np.arange(len(cheap))
    gains = offers.skipped[units, dear] - offers.skipped[units, cheap]
    prices = offers.costs[units, dear] - offers.costs[units, cheap]
    picked = cheap.copy()
    for unit in np.argsort(prices / np.maximum(gains, 1e-12)):
        moved = picked.copy()
        moved[unit] = dear[unit]
        if cost is not None and offers.cost(moved) > cost:
            continue
        if share is not None and offers.share(moved) >= share:
            return _just_enough(offers, picked, int(unit), int(dear[unit]), share)
        picked = moved
    return picked


def _just_enough(offers: _Offers, picked: NDArray[np.int64], unit: int, most: int, share: float) -> NDArray[np.int64]:
    """The smallest threshold of a unit with which the share is reached."""
    moved = picked.copy()
    while moved[unit] < most and offers.share(moved) < share:
        moved[unit] += 1
    return moved
