"""Tables as text."""

from __future__ import annotations

from collections.abc import Sequence


def percent(share: float | None) -> str:
    """``41.3 %``, or ``-``."""
    return "-" if share is None else f"{100 * share:.1f} %"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns as wide as they need to be."""
    widths = [max(len(str(cell)) for cell in column) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]
