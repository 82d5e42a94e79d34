"""Patterns of module names: fnmatch's, and the ranges that people write into them."""

from __future__ import annotations

import fnmatch
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimattn import ArgumentError
from skimattn.sparse import SparseWarning
from skimattn.sparse.config.patterns import check_pattern, matches


def layers(pattern: str, count: int = 40) -> list[int]:
    return [layer for layer in range(count) if matches(pattern, f"model.layers.{layer}.self_attn")]


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("*layers.[0-12].*attn*", list(range(13))),
        ("*layers.[8-12,30].*", [8, 9, 10, 11, 12, 30]),
        ("*layers.[1,3]*", [1, 3]),
        ("*layers.[0-9].*", list(range(10))),
        ("*layers.[1-3][0-9].*", list(range(10, 40))),
        ("*layers.1[0-5].*", list(range(10, 16))),
        ("model.layers.7.self_attn", [7]),
        ("*layers.[!0-9]*", []),
        ("*.layers.?.*", list(range(10))),
    ],
)
def test_ranges_are_numbers_and_the_rest_is_as_in_fnmatch(pattern: str, wanted: list[int]) -> None:
    assert layers(pattern) == wanted


def test_a_range_says_how_it_is_read() -> None:
    said = r"patterns: '\*layers.\[0-12\].\*' is read as the numbers 0 to 12; fnmatch would take \[0-12\] for one"
    with pytest.warns(SparseWarning, match=said):
        check_pattern("patterns", "*layers.[0-12].*")
    with pytest.warns(SparseWarning, match=r"the numbers 1, 4 to 6;"):
        check_pattern("patterns", "*[1,4-6]*")


def test_what_fnmatch_reads_alike_says_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_pattern("patterns", "*layers.[0-9].*attn[!x]*")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("", "^targets: expected a pattern of module names"),
        ("a.[12-3]", r"^targets: expected ranges that rise and end below 4096 \(got '12-3' in \[12-3\]\)"),
        ("a.[0-99999]", "^targets: expected ranges that rise"),
    ],
)
def test_patterns_that_cannot_be_meant(pattern: str, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        check_pattern("targets", pattern)


@given(st.text("a.*?[]!-01", max_size=8), st.text("a.01", max_size=8))
def test_without_ranges_it_is_fnmatch(pattern: str, name: str) -> None:
    assert matches(pattern, name) == fnmatch.fnmatchcase(name, pattern) or any(part.isdigit() for part in pattern)
