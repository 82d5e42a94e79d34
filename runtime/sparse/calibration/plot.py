"""The picture of a calibration: points, and the fit at each length, a panel for each phase."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .result import Calibration


def check() -> Any:
    """What draws; raises as :meth:`Calibration.plot` where it is not there."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("plots need matplotlib: pip install 'skimattn[calibrate]'") from error
    return Figure


def draw(found: Calibration, path: Path) -> None:
    """Draw it into a file; raises as :meth:`Calibration.plot`."""
    phases = list(found.points)
    figure = check()(figsize=(6 * len(phases), 4.5), layout="constrained")
    for phase, axes in zip(phases, figure.subplots(1, len(phases), squeeze=False)[0], strict=True):
        fit = found.config.fit[phase]
        shares = np.linspace(*(fit.sparsity or (0.1, 0.9)), 50)
        for length in sorted({point.length for point in found.points[phase]}):
            mine = [point for point in found.points[phase] if point.length == length]
            [dots] = axes.plot([point.threshold for point in mine], [point.share for point in mine], ".")
            expected = [fit.threshold(float(share), length) for share in shares]
            axes.plot(expected, shares, "-", color=dots.get_color(), label=f"{length} keys")
        axes.set(xscale="log", xlabel="threshold", ylabel="skipped share of the tiles", title=phase)
        axes.legend()
    figure.savefig(path)
