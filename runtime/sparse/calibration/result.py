"""What a calibration found: a configuration, the points behind it, and a picture of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..config.config import SkipSoftmaxConfig
from ..config.fit import Fit
from ..policy import Phase
from ..tables import percent, table
from .fit import share_interval
from .point import Point
from .quality import Chosen


@dataclass(frozen=True)
class Calibration:
    """A configuration and what it rests on.

    Attributes:
        config: for :func:`skimattn.sparse.sparsify`.
        points: by phase, what every text skipped at every threshold.
        chosen: by phase, thresholds of layers or heads, where they were asked for.
    """

    config: SkipSoftmaxConfig
    points: Mapping[Phase, tuple[Point, ...]]
    chosen: Mapping[Phase, Chosen]

    def __str__(self) -> str:
        """Fits, their errors and intervals, and what targets come to."""
        rows = [
            (phase, name, *_formula(fit), str(len(fit.curves) or "-"), *map(percent, _errors(fit)))
            for phase in self.points
            for name, fit in (("own", self.config.fit[phase]), ("public", self.config.public_fit[phase]))
        ]
        lines = table(("phase", "fit", "a", "b", "g", "curves", "residual", "held-out texts", "held-out lengths"), rows)
        for phase, points in self.points.items():
            target, fit = self.config.target_sparsity.get(phase), self.config.fit[phase]
            if isinstance(target, float) and phase not in self.chosen:
                lines.append(f"{phase}: {_reached(target, fit, points)}")
            if phase in self.chosen:
                one = self.chosen[phase]
                lines.append(
                    f"{phase}: thresholds of {len(one.profile.units)} units skip {percent(one.share)} as a whole"
                )
                lines[-1] += f", at a cost of {one.cost:.4g}"
        return "\n".join(lines)

    def plot(self, path: str | Path) -> None:
        """Draw skipped shares over thresholds with the fit of each length, as PNG, PDF or SVG by the file's name.

        Raises:
            ModuleNotFoundError: matplotlib is not there; the text says how to get it.
        """
        from .plot import draw  # which needs matplotlib

        draw(self, Path(path))


def _formula(fit: Fit) -> tuple[str, str, str]:
    return f"{fit.a:.4g}", f"{fit.b:.4g}", f"{fit.length_power:.3g}"


def _errors(fit: Fit) -> tuple[float | None, float | None, float | None]:
    return fit.residual, fit.heldout_error, fit.heldout_length_error


def _reached(target: float, fit: Fit, points: tuple[Point, ...]) -> str:
    """What a target comes to at the longest text, and where it cannot be had."""
    length, shortest = max(point.length for point in points), fit.shortest(target)
    text = f"a target of {percent(target)} is a threshold of {fit.threshold(target, length):.3g} at {length} keys"
    between = share_interval(fit, points, target, length)
    if between is not None:
        text += f", which skips {percent(between[0])} to {percent(between[1])} (95 %)"
    return f"{text}; below {shortest} keys it would be 1 or more, so they stay dense" if shortest > 1 else text
