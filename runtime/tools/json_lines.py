"""JSON Lines, as users hand them to commands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import expected


def json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    """Each line's value, and where it stands (``FILE:NUMBER``), for messages; empty lines are passed over.

    Raises:
        ArgumentError: a line is no JSON.
        OSError: the file cannot be read.
    """
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{file}:{number}"
            try:
                yield where, json.loads(line)
            except json.JSONDecodeError as error:
                raise expected(where, "a line of JSON", error) from error
