"""What a calibration observes."""

from __future__ import annotations

from dataclasses import dataclass

LEAST, MOST = 0.1, 0.9  # shares that fits are of, and judged by: beyond them there is no exponential


@dataclass(frozen=True)
class Point:
    """What one sample skipped at one threshold.

    Attributes:
        sample: names the text; points of one are resampled and held out together.
        length: its keys.
        threshold: the final one.
        visited: tiles.
        skipped: tiles.
    """

    sample: str
    length: int
    threshold: float
    visited: int
    skipped: int

    @property
    def share(self) -> float:
        """The skipped share of the visited tiles."""
        return self.skipped / self.visited if self.visited else 0.0

    @property
    def takes_part(self) -> bool:
        """Whether fits are of it."""
        return self.threshold > 0 and LEAST <= self.share <= MOST
