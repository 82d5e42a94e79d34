"""Which points a fit sees, and which are held out, by turns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]


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
