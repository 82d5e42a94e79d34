"""Measured values that cannot fall, made so."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def rising(values: Sequence[float] | Floats) -> Floats:
    """The nearest values (least squares) that never fall: neighbours that do are replaced by their mean.

    Measured losses are noisy, and a larger threshold that seems to cost less would be taken for a bargain.
    """
    blocks: list[list[float]] = []  # mean, how many
    for value in values:
        blocks.append([float(value), 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, count = blocks.pop()
            before, many = blocks.pop()
            blocks.append([(mean * count + before * many) / (count + many), count + many])
    return np.concatenate([np.full(int(count), mean) for mean, count in blocks])
