"""Local files in LongBench's two formats: what a row has to have, and prompts that fit into a window."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import expected
from ..json_lines import json_lines

Row = dict[str, Any]
LETTERS = "ABCD"
FIRST = ("input", "context", "answers", "dataset", "all_classes")  # keys of a row of v1 that are used
SECOND = ("question", "context", "answer", *(f"choice_{letter}" for letter in LETTERS))  # likewise of v2
# Ours: the benchmark's own text is not copied.
PROMPT = """Here is a text, between two lines of dashes. A question about it follows.
----------
{context}
----------
Question: {question}
{choices}

Decide which of the four is right. End with one line of the form "The correct answer is (X)", where X is its letter.
"""
_SAID = re.compile(r"answer\s+is:?\s*\**\(?([A-D])\b", re.IGNORECASE)
_ALONE = re.compile(r"^\W*([A-D])\b(?:\W|$)")
_BRACKETS = re.compile(r"\(([A-D])\)")


@dataclass
class Rows:
    """Rows of local files: v1's by their ``dataset``, and v2's."""

    first: dict[str, list[Row]] = field(default_factory=dict)
    second: list[Row] = field(default_factory=list)


def read(files: Sequence[Path]) -> Rows:
    """The rows of JSON Lines files.

    Raises:
        ArgumentError: a line is of neither format; the text names the file and the line.
        OSError: a file cannot be read.
    """
    found = Rows()
    for file in files:
        for where, row in _rows(file):
            if "choice_A" in row:
                found.second.append(_second(where, row))
            else:
                _need(where, row, FIRST, "LongBench v1")
                found.first.setdefault(str(row["dataset"]), []).append(row)
    return found


def _rows(file: Path) -> Iterator[tuple[str, Row]]:
    for where, row in json_lines(file):
        if not isinstance(row, dict):
            raise expected(where, "keys and values", str(row)[:60])
        yield where, row


def _need(where: str, row: Row, keys: Sequence[str], form: str) -> None:
    missing = [key for key in keys if key not in row]
    if missing:
        raise expected(where, f"the keys of {form}", f"none named {', '.join(missing)}")


def _second(where: str, row: Row) -> Row:
    _need(where, row, SECOND, "LongBench v2")
    if row["answer"] not in tuple(LETTERS):
        raise expected(f"{where}: answer", "A, B, C or D", repr(row["answer"]))
    return row


def as_first(row: Row) -> Row:
    """A row of v1 with the names that lm-eval's tasks have."""
    return {"question": row["input"], **{key: row[key] for key in ("context", "answers", "all_classes")}}


def as_second(row: Row) -> Row:
    """A row of v2 likewise: ``choices``, and the place of the right one."""
    choices = [str(row[f"choice_{letter}"]) for letter in LETTERS]
    answer = LETTERS.index(row["answer"])
    return {"question": row["question"], "context": row["context"], "choices": choices, "answer": answer}


def asked(row: Row) -> str:
    """The generative prompt of a row of :func:`as_second`."""
    choices = "\n".join(f"({letter}) {text}" for letter, text in zip(LETTERS, row["choices"], strict=True))
    return PROMPT.format(context=row["context"].strip(), question=row["question"].strip(), choices=choices)


def letter_of(text: str) -> str | None:
    """The answer that a generated text comes to: the last "answer is (X)"; else what it begins with, or has alone."""
    said = _SAID.findall(text)
    if said:
        return str(said[-1]).upper()
    alone = _ALONE.match(text)
    if alone:
        return alone[1]
    brackets = set(_BRACKETS.findall(text))
    return brackets.pop() if len(brackets) == 1 else None


def fitted(context: str, room: int, encode: Callable[[str], Sequence[int]], decode: Callable[[list[int]], str]) -> str:
    """A context of at most ``room`` tokens: what is too much is cut out of its middle."""
    tokens = list(encode(context))
    if len(tokens) <= room:
        return context
    head = room // 2
    return decode(tokens[:head]) + decode(tokens[len(tokens) - (room - head) :])
