"""Token files for ``bench models``: texts to calibrate on, others to measure on, and texts with needles."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimattn.sparse import retrieval, windows

Tokens = list[int]
Encode = Callable[[str], Sequence[int]]
USES = ("calibration", "evaluation")
_LETTERS = 400  # of which a paragraph is told from another


@dataclass(frozen=True)
class Texts:
    """What a token file holds.

    Args:
        streams: int32, by name of the texts and use; a name has both uses, of different files.
        beginning: tokens that the model wants before a text.
        needles: int32 ``[N, tokens]``, without a beginning; the last ``answers`` of each are what was asked for.
        answers: how many, ``[N]``.
    """

    streams: Mapping[tuple[str, str], NDArray[np.int32]]
    beginning: tuple[int, ...]
    needles: NDArray[np.int32]
    answers: NDArray[np.int32]

    @property
    def names(self) -> list[str]:
        """Of the kinds of texts."""
        return list(dict.fromkeys(name for name, _ in self.streams))

    def windows(self, use: str, length: int, count: int, start: int = 0) -> list[Tokens]:
        """Windows of ``length`` tokens, the beginning among them, kinds of texts taking turns.

        Args:
            use: ``calibration`` or ``evaluation``.
            length: of a window.
            count: of all windows.
            start: tokens of each stream to leave out before the first.

        Raises:
            ArgumentError: a stream is too short.
        """
        each = -(-count // len(self.names))
        inside = length - len(self.beginning)
        kinds = [windows(self.streams[name, use].tolist(), [inside], each, start) for name in self.names]
        turns = [[*self.beginning, *window] for turn in zip(*kinds, strict=True) for window in turn]
        return turns[:count]

    def name_of(self, index: int) -> str:
        """The kind of text of a window of :meth:`windows`."""
        return self.names[index % len(self.names)]

    def asked(self, count: int) -> list[Tokens]:
        """Texts with needles."""
        return [[*self.beginning, *row.tolist()] for row in self.needles[:count]]

    @property
    def digest(self) -> str:
        """Names what is in it."""
        found = hashlib.sha256()
        for array in (*self.streams.values(), self.needles, self.answers):
            found.update(array.tobytes())
        return found.hexdigest()[:16]


def save(texts: Texts, path: Path) -> None:
    """Write a token file."""
    arrays = {f"{name}.{use}": stream for (name, use), stream in texts.streams.items()}
    beginning = np.array(texts.beginning, dtype=np.int32)
    np.savez_compressed(
        path, allow_pickle=False, beginning=beginning, needles=texts.needles, answers=texts.answers, **arrays
    )


def load(path: Path) -> Texts:
    """Read a token file; ``ValueError`` if it is none."""
    with np.load(path) as held:
        missing = {"beginning", "needles", "answers"} - set(held.files)
        if missing:
            raise ValueError(
                f"{path}: expected a token file of bench models (got one without {', '.join(sorted(missing))})"
            )
        streams = {(name, use): held[f"{name}.{use}"] for name, _, use in _parted(held.files)}
        return Texts(streams, tuple(held["beginning"].tolist()), held["needles"], held["answers"])


def _parted(names: Iterable[str]) -> list[tuple[str, str, str]]:
    return [parts for name in names if (parts := name.rpartition("."))[1]]


def make(
    files: Mapping[str, Sequence[Path]],
    encode: Encode,
    decode: Callable[[Sequence[int]], str],
    beginning: Sequence[int],
    *,
    tokens: tuple[int, int],
    length: int,
    needles: int,
) -> Texts:
    """Tokens of texts. Files take turns in what they are used for, so that no file serves both.

    Paragraphs that came before, in whatever file, are left out.

    Args:
        files: by name of the kind of text.
        encode: makes tokens.
        decode: makes text of them.
        beginning: what the model wants before a text.
        tokens: of each kind, for calibration and for evaluation.
        length: of texts with needles, the beginning among it.
        needles: how many such texts.

    Raises:
        ValueError: files are too short.
    """
    streams: dict[tuple[str, str], NDArray[np.int32]] = {}
    seen: set[str] = set()
    for name, paths in files.items():
        # Every fifth file calibrates.
        uses = {USES[0]: paths[::5], USES[1]: [path for index, path in enumerate(paths) if index % 5]}
        for (use, some), wanted in zip(uses.items(), tokens, strict=True):
            found: list[int] = []
            for path in some:
                if len(found) >= wanted:
                    break
                found += encode(_without_repeats(_read(path), seen))
            if len(found) < wanted:
                raise ValueError(f"{name}: expected {wanted} tokens for {use} (got {len(found)})")
            streams[name, use] = np.array(found[:wanted], dtype=np.int32)
    inside = length - len(beginning)
    rows = [retrieval(encode, inside, seed=seed) for seed in range(needles)]
    answers = [_answer(row, decode) for row in rows]
    return Texts(streams, tuple(beginning), np.array(rows, dtype=np.int32), np.array(answers, dtype=np.int32))


def _read(path: Path) -> str:
    raw = path.read_bytes()
    return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8", errors="replace")


def _without_repeats(text: str, seen: set[str]) -> str:
    kept = []
    for paragraph in text.split("\n\n"):
        key = " ".join(paragraph.split())[:_LETTERS]
        if key and (len(key) < 40 or key not in seen):
            kept.append(paragraph)
        seen.add(key)
    return "\n\n".join(kept)


def _answer(row: Sequence[int], decode: Callable[[Sequence[int]], str]) -> int:
    """How many last tokens have the seven digits that were asked for in them."""
    return next(count for count in range(1, 40) if sum(map(str.isdigit, decode(row[-count:]))) >= 7)
