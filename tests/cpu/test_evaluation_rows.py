"""Files in LongBench's formats, cut contexts, and the letter that a text comes to: without lm-eval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from skimattn.errors import ArgumentError
from skimattn.sparse import SkipSoftmaxConfig
from skimattn.tools.evaluation import rows, running, shown
from skimattn.tools.evaluation.running import Result

FIRST = {"input": "Who?", "context": "x", "answers": ["a cat"], "length": 1, "dataset": "qasper", "language": "en"}
FIRST |= {"all_classes": None, "_id": "1"}
SECOND = {"_id": "2", "domain": "d", "sub_domain": "s", "difficulty": "easy", "length": "short", "question": "Which?"}
SECOND |= {"choice_A": "ann", "choice_B": "bob", "choice_C": "cid", "choice_D": "dan", "answer": "C", "context": "y"}


def written(folder: Path, *lines: Any) -> Path:
    file = folder / "data.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return file


def test_both_formats_are_told_apart(tmp_path: Path) -> None:
    found = rows.read([written(tmp_path, FIRST, "", SECOND, {**FIRST, "dataset": "trec"})])
    assert list(found.first) == ["qasper", "trec"] and len(found.second) == 1
    assert rows.as_first(found.first["qasper"][0])["question"] == "Who?"
    second = rows.as_second(found.second[0])
    assert second["answer"] == 2 and second["choices"] == ["ann", "bob", "cid", "dan"]
    text = rows.asked(second)
    assert "\ny\n" in text and "Question: Which?\n(A) ann\n(B) bob\n(C) cid\n(D) dan\n" in text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", ":1: expected a line of JSON"),
        ("[1]", ":1: expected keys and values"),
        ({"context": "x"}, "keys of LongBench v1 (got none named input, answers, dataset, all_classes)"),
        ({"choice_A": "x", "question": "?"}, "keys of LongBench v2 (got none named context, answer, choice_B"),
        ({**SECOND, "answer": "E"}, ":1: answer: expected A, B, C or D (got 'E')"),
    ],
)
def test_lines_of_neither_format_are_refused(tmp_path: Path, line: Any, said: str) -> None:
    with pytest.raises(ArgumentError) as refused:
        rows.read([written(tmp_path, line)])
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The correct answer is (B).", "B"),
        ("The answer is A, or so it seems. No: the correct answer is **(D)**", "D"),
        ("correct answer is: c", "C"),
        ("B", "B"),
        ("(A) because it rains", "A"),
        ("Of these, it says (C) and again (C)", "C"),
        ("Either (A) or (B)", None),
        ("Dogs are not mentioned", None),
        ("", None),
    ],
)
def test_the_letter_that_a_text_comes_to(text: str, letter: str | None) -> None:
    assert rows.letter_of(text) == letter


def test_too_long_contexts_lose_their_middle() -> None:
    def encode(text: str) -> list[int]:
        return list(text.encode())

    def decode(tokens: list[int]) -> str:
        return bytes(tokens).decode()

    assert rows.fitted("abcdefgh", 8, encode, decode) == "abcdefgh"
    assert rows.fitted("abcdefgh", 5, encode, decode) == "abfgh"
    assert rows.fitted("abcdefgh", 1, encode, decode) == "h"


def test_targets_need_a_fit_that_they_can_be_put_into() -> None:
    fit = {"prefill": {"a": 10.0, "b": 5.0}}
    config = SkipSoftmaxConfig(fit=fit, target_sparsity={"prefill": 0.2})
    ways = running.ways_of(config, (0.3, 0.5))
    assert [(way.name, way.target) for way in ways] == [("dense", None), ("0.3", 0.3), ("0.5", 0.5)]
    assert ways[0].config is None and ways[2].config is not None
    assert ways[2].config.target_sparsity == {"prefill": 0.5} and ways[2].config.fit == config.fit
    assert [way.name for way in running.ways_of(config, None)] == ["dense", "config"]
    with pytest.raises(ArgumentError, match=r"targets: expected a configuration with a fit, .*one without"):
        running.ways_of(SkipSoftmaxConfig(threshold=0.1), (0.3,))
    chosen = SkipSoftmaxConfig(fit=fit, patterns={"*0*": {"threshold": 0.1}})
    with pytest.raises(ArgumentError, match="targets: expected a configuration without thresholds of layers"):
        running.ways_of(chosen, (0.3,))


RESULTS = [
    Result("dense", "a", {"acc": (0.5, 0.1)}, 10, {}, 1.0),
    Result("dense", "b", {"4096": (1.0, None), "8192": (0.5, None)}, 4, {}, 1.0),
    Result("0.5", "a", {"acc": (0.25, 0.1)}, 10, {"prefill": (100, 40), "decode": (100, 60)}, 2.0),
    Result("0.5", "b", {"4096": (1.0, None), "8192": (0.0, None)}, 4, {"prefill": (10, 3), "decode": (0, 0)}, 2.0),
]


def test_tables_values_and_points() -> None:
    lines = [line.split("  ") for line in shown.lines(RESULTS)]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert ["a", "0.5", "40.0 %", "60.0 %", "acc", "0.2500", "0.1000", "-0.2500", "10", "2.0"] in cells
    assert ["b", "0.5", "30.0 %", "-", "8192", "0.0000", "-0.5000", "4", "2.0"] in cells
    assert cells[-2:] == [["mean", "dense", "0.6250"], ["mean", "0.5", "0.3750", "-0.2500"]]
    values = shown.as_values(RESULTS, {"model": "m"})
    assert values["settings"] == {"model": "m"} and values["means"] == {"dense": 0.625, "0.5": 0.375}
    assert values["results"][2]["sparsity"] == {"prefill": 0.4, "decode": 0.6}
    assert values["results"][2]["tiles"]["decode"] == {"visited": 100, "skipped": 60}
    assert values["results"][2]["scores"]["acc"] == {"score": 0.25, "error": 0.1, "less_dense": -0.25}
    assert shown.points(RESULTS)["a"] == [(0.0, 0.5), (0.5, 0.25)]
    assert shown.points(RESULTS)["b 8192"] == [(0.0, 0.5), (0.3, 0.0)]
