"""The picture of a calibration: points and fits, a panel for each phase."""

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
        for length in sorted({point.length for point in found.points[phase]}):
            mine = [point for point in found.points[phase] if point.length == length]
            factors = [point.threshold * float(length) ** fit.length_power for point in mine]
            axes.plot(factors, [point.share for point in mine], ".", label=f"{length} keys")
        shares = np.linspace(*(fit.sparsity or (0.1, 0.9)), 50)
        axes.plot([fit.factor(float(share)) for share in shares], shares, "k-", label=f"a {fit.a:.3g}, b {fit.b:.3g}")
        power = "" if fit.length_power == 1 else f"^{fit.length_power:.3g}"
        axes.set(xscale="log", xlabel=f"threshold x length{power}", ylabel="skipped share of the tiles", title=phase)
        axes.legend()
    figure.savefig(path)
