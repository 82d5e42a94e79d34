"""What a calibration has measured so far, in a file, so that it can go on where it was stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import expected

_FORMAT = 1


class State:
    """Measurements by key. A line of JSON each, appended whole: a line that was cut off is dropped and measured again.

    Args:
        path: the file; None: nothing is kept.
        about: what the measurements depend on; a file of others is refused.
        of: what measures, for messages.

    Raises:
        ArgumentError: the file is of another one, or no such file at all.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: str | Path | None, about: Mapping[str, Any], of: str = "calibration") -> None:
        """Read what is there, or begin the file."""
        self._of = of
        self._path = None if path is None else Path(path)
        self._header = {"format": _FORMAT, **json.loads(json.dumps(about))}
        self._known: dict[str, Any] = {}
        if self._path is not None:
            self._open(self._path)

    def __len__(self) -> int:
        """How many measurements there are."""
        return len(self._known)

    def get(self, key: str) -> Any:
        """What was measured under a key; None: nothing yet."""
        return self._known.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a measurement, on the disk before this returns."""
        self._known[key] = value
        if self._path is not None:
            self._append(self._path, {"key": key, "value": value})

    def _open(self, path: Path) -> None:
        text = path.read_bytes() if path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if not whole:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
            self._append(path, self._header)
            return
        lines = whole.splitlines()
        try:
            header, *rows = (json.loads(line) for line in lines)
            known = {row["key"]: row["value"] for row in rows}
        except (ValueError, TypeError, KeyError) as error:
            one = f"an {self._of}" if self._of[0] in "aeiou" else f"a {self._of}"
            raise expected("state", f"a file that {one} left, in {path}", "something else") from error
        if header != self._header:
            wanted = f"the file of this {self._of} in {path}; another model, data or settings need another file"
            raise expected("state", wanted, f"that of {_difference(self._header, header)}")
        if len(whole) < len(text):
            os.truncate(path, len(whole))
        self._known = known

    @staticmethod
    def _append(path: Path, row: Mapping[str, Any]) -> None:
        with path.open("ab") as file:
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _difference(wanted: Mapping[str, Any], got: object) -> str:
    if not isinstance(got, Mapping):
        return repr(got)
    names = [name for name in {**wanted, **got} if wanted.get(name) != got.get(name)]
    return ", ".join(f"other {name}" for name in names)
