"""What is worth saying, but no reason to refuse."""

from __future__ import annotations

import warnings


class SparseWarning(UserWarning):
    """A configuration was read as its author meant it rather than as it stands, or is less sure than it looks."""


def warn(text: str) -> None:
    """Say it once for each place of the caller's that leads here."""
    warnings.warn(text, SparseWarning, stacklevel=3)
