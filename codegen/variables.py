"""How ``SKIMATTN_*`` variables are read: an empty one is not set, and what cannot be meant is refused by name."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from .errors import expected

_WORDS = {"1": True, "true": True, "on": True, "yes": True, "0": False, "false": False, "off": False, "no": False}


def text(name: str) -> str | None:
    """The variable's value; None if it is not set or empty."""
    return os.environ.get(name) or None


def switch(name: str, default: bool) -> bool:
    """A variable that is on or off, in any of the usual words, upper or lower case.

    Raises:
        ArgumentError: it is another word.
    """
    value = text(name)
    return default if value is None else meaning(name, value)


def meaning(name: str, word: str) -> bool:
    """What one of the usual words means; ``name`` is who said it.

    Raises:
        ArgumentError: it is another word.
    """
    if (meant := _WORDS.get(word.strip().lower())) is None:
        raise expected(name, f"one of {', '.join(_WORDS)}", repr(word))
    return meant


def choice(name: str, choices: Collection[str]) -> str | None:
    """A variable that names one of ``choices``; None if it is not set.

    Raises:
        ArgumentError: it names something else.
    """
    value = text(name)
    if value is not None and value not in choices:
        raise expected(name, f"one of {', '.join(choices)}", repr(value))
    return value


def path(name: str) -> Path | None:
    """A variable that names a folder, made absolute; None if it is not set. The folder need not be there."""
    value = text(name)
    return None if value is None else Path(value).absolute()


def folder(name: str) -> Path | None:
    """As :func:`path`, of a folder that is there.

    Raises:
        ArgumentError: there is no such folder.
    """
    found = path(name)
    if found is not None and not os.path.isdir(found):  # nor one that this user cannot reach
        raise expected(name, "a folder that exists", repr(os.environ[name]))
    return found
