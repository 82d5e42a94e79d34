"""Patterns of module names: those of fnmatch, with the number ranges that people write into them."""

from __future__ import annotations

import fnmatch
import re
from functools import lru_cache

from ...errors import expected
from ..warning import warn

# Numbers and ranges of them in brackets: [0-12], [1,4-7,30]. To fnmatch all of these are sets of single characters.
_NUMBERS = re.compile(r"\[(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)\]")
_MOST = 4096  # layers that a range may name: a larger one is a mistake, and would make a long expression


def check_pattern(key: str, pattern: str) -> None:
    """Refuse a pattern that cannot be meant, and say so where one is not read as fnmatch would.

    Raises:
        ArgumentError: it is empty, or a range in it runs backwards; ``key`` is what the message names.
    """
    if not pattern:
        raise expected(key, "a pattern of module names", "an empty one")
    for found in _number_ranges(pattern):
        numbers = _numbers(key, found)
        warn(
            f"{key}: {pattern!r} is read as the numbers {_spelled(numbers)}; "
            f"fnmatch would take {found.group(0)} for one character out of it"
        )


def matches(pattern: str, name: str) -> bool:
    """Whether a module's name (or the name of its class) matches, upper and lower case being different."""
    return _compiled(pattern).fullmatch(name) is not None


def _number_ranges(pattern: str) -> list[re.Match[str]]:
    """Bracketed numbers that no set of characters can mean: of several digits, or with commas.

    ``[0-9]``, ``[1-3][0-9]`` and the like stay what fnmatch takes them for.
    """
    return [
        found for found in _NUMBERS.finditer(pattern) if "," in found.group(1) or re.search(r"\d\d", found.group(1))
    ]


def _numbers(key: str, found: re.Match[str]) -> list[int]:
    numbers: list[int] = []
    for part in found.group(1).split(","):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if not low <= high < _MOST:
            raise expected(key, f"ranges that rise and end below {_MOST}", f"{part!r} in {found.group(0)}")
        numbers.extend(range(low, high + 1))
    return sorted(set(numbers))


def _spelled(numbers: list[int]) -> str:
    """``0 to 12`` or ``1, 4 to 7``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in runs)


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    expression, start = "", 0
    for found in _number_ranges(pattern):
        alternatives = "|".join(map(str, _numbers("pattern", found)))
        # Whole numbers only: layer 1 is not the beginning of layer 12.
        expression += _translated(pattern[start : found.start()]) + rf"(?<!\d)(?:{alternatives})(?!\d)"
        start = found.end()
    return re.compile(expression + _translated(pattern[start:]), re.DOTALL)


def _translated(piece: str) -> str:
    """The expression of a piece of a pattern, without what fnmatch puts around it.

    It is the piece's own between two characters that no name has, which are cut off again.
    """
    left, right = "\ue000", "\ue001"
    whole = fnmatch.translate(left + piece + right)
    return whole[whole.index(left) + 1 : whole.rindex(right)]
