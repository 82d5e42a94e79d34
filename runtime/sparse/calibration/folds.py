"""Which points a fit sees, and which are held out, by turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]
# Places seen and held out -> the error on those held out and how much they weigh; None: those seen make no fit.
Judge = Callable[[Places, Places], tuple[float, float] | None]


def folds_of(labels: Sequence[str], most: int) -> list[tuple[Places, Places]]:
    """Places seen and held out in each fold; those of one label are held out together. Empty with fewer than 2 labels.

    Args:
        labels: of the points.
        most: folds.
    """
    names = sorted(set(labels))
    folds, place = min(most, len(names)), {name: index for index, name in enumerate(names)}
    if folds < 2:
        return []
    fold = np.array([place[label] % folds for label in labels])
    return [(np.flatnonzero(fold != one), np.flatnonzero(fold == one)) for one in range(folds)]


def held_out_error(labels: Sequence[str], most: int, judge: Judge) -> float | None:
    """The error on points whose label a fit had not seen, over all folds; None if some other labels make no fit."""
    squares = weights = 0.0
    for seen, held in folds_of(labels, most):
        judged = judge(seen, held)
        if judged is None:
            return None
        error, weight = judged
        squares, weights = squares + error**2 * weight, weights + weight
    return math.sqrt(squares / weights) if weights else None
