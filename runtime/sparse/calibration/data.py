"""Texts for calibration: windows of token streams or of text files, and retrieval tasks that are made up here."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

from ...errors import expected

Encode = Callable[[str], Sequence[int]]  # a tokenizer

_PLACES = ("harbour", "mill", "orchard", "quarry", "station", "chapel", "garden", "bridge", "market", "tower")
_ACTS = (
    "keeps its doors open until the evening",
    "was painted again after the long winter",
    "lies at the end of a narrow road",
    "has belonged to one family for years",
    "is visited mostly by people from nearby",
    "smells of wet stone when it rains",
    "can be seen from the hill in the west",
    "stood empty for most of the summer",
)
_COLOURS = (
    "amber",
    "cobalt",
    "crimson",
    "ivory",
    "jade",
    "lilac",
    "ochre",
    "scarlet",
    "silver",
    "teal",
    "umber",
    "violet",
)
_THINGS = (
    "anchor",
    "basket",
    "candle",
    "falcon",
    "kettle",
    "lantern",
    "mirror",
    "needle",
    "pepper",
    "saddle",
    "violin",
    "walnut",
)


def windows(
    tokens: Iterable[int] | torch.Tensor, lengths: Sequence[int], count: int, start: int = 0
) -> list[list[int]]:
    """Windows that follow each other in a stream of tokens: ``count`` of each length, lengths taking turns.

    Args:
        tokens: the stream; as much of it is read as is needed.
        lengths: tokens of a window; several, so that a fit can tell what the length does.
        count: windows of each length.
        start: tokens to leave out before the first.

    Raises:
        ArgumentError: the stream is too short.
    """
    if not lengths or min(lengths) < 1:
        raise expected("lengths", "at least one, each above 0", list(lengths))
    if count < 1:
        raise expected("count", "at least 1", count)
    stream, needed = iter(tokens.tolist() if isinstance(tokens, torch.Tensor) else tokens), start + count * sum(lengths)
    held = [int(token) for token, _ in zip(stream, range(needed), strict=False)]
    if len(held) < needed:
        raise expected("tokens", f"at least {needed} for {count} windows of {list(lengths)}", len(held))
    found, at = [], start
    for _ in range(count):
        for length in lengths:
            found.append(held[at : at + length])
            at += length
    return found


def text_windows(
    files: Iterable[str | Path], encode: Encode, lengths: Sequence[int], count: int, start: int = 0
) -> list[list[int]]:
    """Windows of text files, one file after the other, read only as far as needed.

    Args:
        files: UTF-8 texts; bytes that are none are replaced.
        encode: makes tokens of a text.
        lengths: as in :func:`windows`; so are ``count`` and ``start``.

    Raises:
        ArgumentError: the files are too short.
        OSError: one cannot be read.
    """
    return windows(_encoded(files, encode), lengths, count, start)


def _encoded(files: Iterable[str | Path], encode: Encode) -> Iterator[int]:
    for file in files:
        yield from encode(Path(file).read_text(encoding="utf-8", errors="replace"))


def retrieval(encode: Encode, length: int, *, needles: int = 4, queries: int = 1, seed: int = 0) -> list[int]:
    """A made-up text with facts to be found again: what RULER's retrieval tasks do to attention, without its data.

    Sentences about nothing in particular, among them at random depths ``needles`` that give a number for a name; at the
    end it asks for ``queries`` of these and answers, so that the loss of the last tokens tells whether they were found.

    Args:
        encode: a tokenizer.
        length: of the result, in tokens, exactly.
        needles: facts.
        queries: of them asked for; at most as many.
        seed: which text.

    Raises:
        ArgumentError: the facts and questions alone are longer, or more is asked for than there is.
    """
    if not 1 <= queries <= needles:
        raise expected("queries", f"between 1 and needles, which are {needles}", queries)
    if needles > len(_COLOURS) * len(_THINGS):
        raise expected("needles", f"at most {len(_COLOURS) * len(_THINGS)}", needles)
    draw = random.Random(seed)
    names = draw.sample([f"{colour} {thing}" for colour in _COLOURS for thing in _THINGS], needles)
    facts = {name: str(draw.randrange(10**6, 10**7)) for name in names}
    asked = draw.sample(names, queries)
    tail = list(encode("".join(f" The number of the {name} is {facts[name]}." for name in asked)))
    inside = [list(encode(f" Remember that the number of the {name} is {facts[name]}.")) for name in names]
    room = length - len(tail) - sum(map(len, inside))
    if room < 0:
        raise expected("length", f"at least {length - room} tokens for {needles} facts and {queries} questions", length)
    return _hidden(_filler(encode, draw, room), inside, draw) + tail


def _filler(encode: Encode, draw: random.Random, tokens: int) -> list[list[int]]:
    """Sentences of so many tokens in all, of which the first is cut."""
    sentences: list[list[int]] = []
    missing = tokens
    while missing > 0:
        sentence = list(encode(f" The {draw.choice(_PLACES)} {draw.choice(_ACTS)}."))[-missing:]
        if not sentence:
            raise expected("encode", "tokens for a sentence", "none")
        sentences.append(sentence)
        missing -= len(sentence)
    return sentences[::-1]


def _hidden(sentences: list[list[int]], needles: list[list[int]], draw: random.Random) -> list[int]:
    """Needles between sentences, at random depths."""
    depths = sorted(draw.randrange(len(sentences) + 1) for _ in needles)
    for depth, needle in zip(reversed(depths), needles, strict=True):
        sentences.insert(depth, needle)
    return [token for sentence in sentences for token in sentence]
