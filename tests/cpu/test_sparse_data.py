"""Texts for calibration."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch
from skimattn import ArgumentError
from skimattn.sparse import retrieval, text_windows, windows


def encode(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def decode(tokens: list[int]) -> str:
    return "".join(map(chr, tokens))


def test_windows_follow_each_other() -> None:
    assert windows(itertools.count(), [2, 3], 2, start=1) == [[1, 2], [3, 4, 5], [6, 7], [8, 9, 10]]
    assert windows(torch.arange(6), [3], 2) == [[0, 1, 2], [3, 4, 5]]


def test_text_files_are_read_as_far_as_needed(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("abc")
    (tmp_path / "b").write_bytes(b"d\xffef")
    files = [tmp_path / "a", tmp_path / "b", tmp_path / "missing"]
    assert [decode(one) for one in text_windows(files, encode, [2], 3)] == ["ab", "cd", "\ufffde"]


@pytest.mark.parametrize("seed", range(5))
def test_retrieval_asks_for_what_it_told(seed: int) -> None:
    text = decode(retrieval(encode, 3000, needles=5, queries=2, seed=seed))
    assert len(text) == 3000 and text == decode(retrieval(encode, 3000, needles=5, queries=2, seed=seed))
    told = dict(re.findall(r"Remember that the number of the (\w+ \w+) is (\d{7})\.", text))
    asked = re.findall(r" The number of the (\w+ \w+) is (\d{7})\.", text)
    assert len(told) == 5 and len(asked) == 2 and all(told[name] == number for name, number in asked)
    assert text.endswith(f"is {asked[-1][1]}.")
    depths = [found.start() / 3000 for found in re.finditer("Remember", text)]
    assert max(depths) - min(depths) > 0.2


def test_seeds_make_other_texts() -> None:
    assert len({tuple(retrieval(encode, 500, seed=seed)) for seed in range(10)}) == 10
    assert len(retrieval(encode, 104, needles=1)) == 104


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: windows([1, 2], [2], 2), r"tokens: expected at least 4 for 2 windows of \[2\] \(got 2\)"),
        (lambda: windows([1], [], 1), "lengths: expected at least one"),
        (lambda: windows([1], [0], 1), "lengths: expected at least one"),
        (lambda: windows([1], [1], 0), "count: expected at least 1"),
        (lambda: retrieval(encode, 50), r"length: expected at least \d+ tokens for 4 facts"),
        (lambda: retrieval(encode, 999, queries=5), "queries: expected between 1 and needles, which are 4"),
        (lambda: retrieval(encode, 999, needles=145), "needles: expected at most 144"),
        (lambda: retrieval(lambda text: [], 10), "encode: expected tokens for a sentence"),
    ],
)
def test_refusals(call: object, words: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{words}"):
        call()  # type: ignore[operator]
