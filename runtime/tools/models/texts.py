"""Texts that commands run: windows of files, of plain text or JSON Lines, or retrieval tasks that are made up here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import expected
from ...sparse.calibration.data import retrieval, windows
from ..json_lines import json_lines

if TYPE_CHECKING:
    from ...integrations.transformers import Loaded

_LINES = (".jsonl", ".ndjson")
_CHARACTERS = 1 << 16  # that are made tokens of at once: no more of a long file than is needed


def samples_of(
    loaded: Loaded, files: Sequence[Path], lengths: Sequence[int], count: int, *, start: int = 0, seed: int = 0
) -> list[list[int]]:
    """``count`` texts of each length as token ids; each begins as the tokenizer begins one.

    Args:
        loaded: the model, whose tokenizer and vocabulary count.
        files: texts, or JSON Lines (``.jsonl``) with ``text`` or ``tokens``; none: retrieval tasks.
        lengths: of the texts, in tokens.
        count: of each length.
        start: tokens of the files to leave out first.
        seed: of what is made up.

    Raises:
        ArgumentError: the files are too short, or a line cannot be read; or a length is too small.
        OSError: a file cannot be read.
    """
    first = loaded.beginning
    short = [length for length in lengths if length < len(first) + 1]
    if short:
        raise expected("lengths", f"at least {len(first) + 1}", short[0])
    rest = [length - len(first) for length in lengths]
    if files:
        found = windows(_tokens(loaded, files), rest, count, start)
    else:
        tasks = [(index * len(rest) + place, length) for index in range(count) for place, length in enumerate(rest)]
        found = [retrieval(loaded.encode, length, seed=seed + number) for number, length in tasks]
    return [first + window for window in found]


def _tokens(loaded: Loaded, files: Sequence[Path]) -> Iterator[int]:
    for file in files:
        if file.suffix in _LINES:
            yield from _tokens_of_lines(loaded, file)
            continue
        with file.open(encoding="utf-8", errors="replace") as text:
            for piece in _pieces(text):
                yield from loaded.encode(piece)


def _pieces(lines: Iterator[str]) -> Iterator[str]:
    """Lines together, as many as are worth a call."""
    held: list[str] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= _CHARACTERS:
            yield "".join(held)
            held, size = [], 0
    if held:
        yield "".join(held)


def _tokens_of_lines(loaded: Loaded, file: Path) -> Iterator[int]:
    vocabulary = loaded.model.get_input_embeddings().num_embeddings
    for where, row in json_lines(file):
        if isinstance(row, dict) and isinstance(row.get("text"), str):
            yield from loaded.encode(row["text"])
        elif isinstance(row, dict) and isinstance(row.get("tokens"), list):
            wrong = [one for one in row["tokens"] if type(one) is not int or not 0 <= one < vocabulary]
            if wrong:
                raise expected(where, f"tokens from 0 to {vocabulary - 1}", repr(wrong[0]))
            yield from row["tokens"]
        else:
            raise expected(where, 'a text under "text" or token ids under "tokens"', str(row)[:60])
