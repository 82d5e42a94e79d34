"""What rows of keys have in common, of whichever command: requests, thresholds, and their line in a plot."""

from __future__ import annotations

from .names import SKIP_NOTHING, THRESHOLD


class PlantedRow:
    """A base of the dataclasses of rows, which have these fields."""

    label: str
    lens: tuple[int, ...]
    planted: float | None
    skipping: bool

    @property
    def batch(self) -> int:
        """Requests."""
        return len(self.lens)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Of our skip kernel; the last is the stat kernel's too, where one is measured."""
        if not self.skipping:
            return ()
        return SKIP_NOTHING if self.planted is None else (THRESHOLD,)

    @property
    def line(self) -> str:
        """The shape without its planted share: points of the same line in the plot."""
        return self.label.partition(", planted")[0]
