"""Parts of ``bench models`` that need no model: fits, intervals, curves at their goals, plans, token files, text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimattn.sparse import Point

from bench import models, models_figures, models_report, models_texts
from bench.models_figures import Measured, share_of
from bench.models_fits import linear_fit
from bench.models_plan import GOALS, UNIFORM, Plan, methods, plan_for


def points(a: float, b: float, off: float = 0.0) -> list[Point]:
    """Of texts of 2000 tokens at shares between 0.05 and 0.95; the largest factor is ``off`` times too large."""
    shares = np.linspace(0.05, 0.95, 19)
    factors = a * np.exp(b * shares)
    factors[17] *= 1 + off  # a share of 0.9
    return [
        Point("x", 2000, factor / 2000, 1000, round(1000 * share))
        for factor, share in zip(factors, shares, strict=True)
    ]


@pytest.mark.parametrize(("a", "b"), [(7.93, 8.61), (0.12, 9.85), (40.0, 0.7)])
def test_the_linear_fit_is_exact_where_there_is_nothing_to_weigh(a: float, b: float) -> None:
    fit = linear_fit(points(a, b))
    assert fit.a == pytest.approx(a, rel=1e-4) and fit.b == pytest.approx(b, rel=1e-4) and fit.length_power == 1


def test_the_linear_fit_is_the_least_sum_of_squares() -> None:
    """No neighbour is better, and one wrong point at the top moves it as it would move no fit of logarithms."""
    given = points(8.0, 8.0, off=0.5)
    fit = linear_fit(given)
    used = [point for point in given if 0.1 <= point.share <= 0.9]

    def error(a: float, b: float) -> float:
        return sum((point.threshold * 2000 - a * math.exp(b * point.share)) ** 2 for point in used)

    for da in (0.995, 1, 1.005):
        for db in (0.999, 1, 1.001):
            assert error(fit.a, fit.b) <= error(fit.a * da, fit.b * db) * (1 + 1e-9)
    assert fit.b > 9.5
    with pytest.raises(ValueError, match=r"^points: expected at least two that skip 10 to 90 % .got 1"):
        linear_fit(given[1:2])


def test_intervals_are_of_pairs() -> None:
    dense = [Measured(2.0 + index) for index in range(50)]
    same = models_figures.added([Measured(one.loss + 0.01, 4, 1) for one in dense], dense)
    assert all(value == pytest.approx(math.expm1(0.01)) for value in same.values()), "windows differ, pairs do not"
    mixed = [Measured(one.loss + (0.02 if index % 2 else 0.0)) for index, one in enumerate(dense)]
    found = models_figures.added(mixed, dense)
    half = 1.96 * 0.01 / math.sqrt(50)
    assert (
        found["low"] == pytest.approx(math.expm1(0.01 - half), abs=5e-4)
        and found["low"] < found["mean"] < found["high"]
    )
    assert share_of([Measured(0.0, 30, 10), Measured(0.0, 10, 10)]) == 0.5 and share_of([Measured(0.0)]) == 0


def curve(*pairs: tuple[float, float]) -> list[dict[str, Any]]:
    return [{"target": share, "share": share, "added": {"mean": loss}} for share, loss in pairs]


def test_goals_are_read_off_between_points() -> None:
    made = [*curve((0.5, 0.001), (0.7, 0.005), (0.8, 0.02)), {"target": 0.9, "why": "cannot"}]
    found = models_figures.at_goal(made, 0.66, 0.003)
    assert found["added"] == pytest.approx(0.0042) and found["share_at_bar"] == pytest.approx(0.6)
    over = models_figures.at_goal(made, 0.85, 0.03)
    assert over["added"] is None and over["share_at_bar"] == 0.8, "what was measured at most"
    dip = curve((0.3, 0.004), (0.5, 0.002), (0.7, 0.006))
    assert models_figures.at_goal(dip, 0.66, 0.003)["share_at_bar"] == pytest.approx(0.55), "the last crossing"


def test_plans() -> None:
    small, large = plan_for(8192), plan_for(32768)
    assert small.windows >= 50 <= large.windows and small.lengths == (1024, 2048, 4096, 8192)
    assert large.lengths[-1] == 32768 and not set(small.calibration_lengths()) & set(small.lengths)
    assert {0.66, 0.77} < set(small.targets) and small.methods[0] == UNIFORM
    known = methods(small)
    assert set(small.methods) == set(known) and set(large.methods) < set(known)
    assert known["heads by dropped mass"].cost == "dropped" and known["heads by loss"].texts == small.heads_alone  # type: ignore[union-attr]
    assert methods(small, "decode")["layers by loss"].texts == 1  # type: ignore[union-attr]
    assert Plan(8192, targets=(0.5,)).plain == small.plain, "more targets may be asked for later"
    options = models.parser().parse_args(
        ["m", "t", "--length", "8192", "--state", "s", "--targets", "0.4", "--windows", "60"]
    )
    plan = models.plan_of(options)
    assert plan.targets == (0.4,) and plan.windows == 60 and plan.methods == small.methods


def test_files_serve_one_use_and_paragraphs_are_read_once(tmp_path: Path) -> None:
    long = "the same paragraph, which is long enough to be told from others"
    files = []
    for index in range(10):
        files.append(tmp_path / f"{index}.txt")
        files[-1].write_text(f"{long}\n\nparagraph {index} of its own, as long as that or a little longer\n\nshort")
    encode, decode = lambda text: list(text.encode()), lambda tokens: bytes(tokens).decode()
    options: dict[str, Any] = {"length": 900, "needles": 2}
    made = models_texts.make({"a": files}, encode, decode, [7], tokens=(150, 400), **options)
    calibration, evaluation = (decode(made.streams["a", use].tolist()) for use in models_texts.USES)
    assert long in calibration and long not in evaluation
    assert "paragraph 5" in calibration and "paragraph 5" not in evaluation and "paragraph 1" in evaluation
    assert made.needles.shape == (2, 899) and made.answers.tolist() == [8, 8]
    assert decode(made.needles[0, -8:].tolist())[:7].isdigit() and made.asked(1)[0][0] == 7
    models_texts.save(made, tmp_path / "t.npz")
    again = models_texts.load(tmp_path / "t.npz")
    assert again.digest == made.digest and again.beginning == (7,) and list(again.streams) == list(made.streams)
    with pytest.raises(ValueError, match=r"^a: expected 5000 tokens for calibration .got"):
        models_texts.make({"a": files}, encode, decode, [], tokens=(5000, 10), **options)
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    with pytest.raises(
        ValueError, match=r"expected a token file of bench models .got one without answers, beginning, needles"
    ):
        models_texts.load(tmp_path / "other.npz")


def test_windows_take_turns_between_kinds(tmp_path: Path) -> None:
    streams = {
        (name, use): np.arange(100, dtype=np.int32) + 1000 * at
        for at, (name, use) in enumerate((n, u) for n in "ab" for u in models_texts.USES)
    }
    made = models_texts.Texts(streams, (5,), np.zeros((0, 3), np.int32), np.zeros(0, np.int32))
    rows = made.windows("evaluation", 11, 5)
    assert [row[:2] for row in rows] == [[5, 1000], [5, 3000], [5, 1010], [5, 3010], [5, 1020]]
    assert [made.name_of(index) for index in range(3)] == ["a", "b", "a"] and {len(row) for row in rows} == {11}


def test_tables_say_what_could_not_be_had(tmp_path: Path) -> None:
    spread = {"mean": 0.004, "low": 0.003, "high": 0.005}
    head = {"phase": "prefill", "method": UNIFORM}
    curves = {
        **head,
        "case": "curves prefill one threshold",
        "part": "curves",
        "windows": 50,
        "length": 8192,
        "perplexity": 15.0,
        "points": [
            {"target": 0.5, "share": 0.52, "added": spread, "by_text": {"a": spread}},
            {"target": 0.9, "why": "no"},
        ],
        "calibration": {"seconds": 12.0, "runs": 3},
        "at_goals": [{"share": share, "bar": bar, "added": None, "share_at_bar": 0.4} for share, bar in GOALS],
    }
    needles = {
        **head,
        "case": "n",
        "part": "needles",
        "texts": 4,
        "dense": 3,
        "points": [{"target": 0.5, "found": 2, "lost": 1}],
    }
    rows = [{"target": 0.5, "length": size, "share": 0.2, "most": most} for size, most in ((1024, 0.3), (8192, 0.9))]
    lengths = {
        "case": "l",
        "part": "lengths",
        "phase": "prefill",
        "way": "plain",
        "rows": rows,
        "rms": 0.3,
        "worst": 0.3,
    }
    cases = [curves, needles, lengths, {"case": "x", "part": "lengths", "phase": "decode", "failed": "because"}]
    text = "\n".join(map(models_report.case_table, cases))
    for words in (
        "+0.40 (+0.30 to +0.50)",
        "cannot be had",
        "2 of 4",
        "20.0 (at most 30.0)",
        "off by 30.0",
        "x: because",
    ):
        assert words in text
    lines = models_report.lines_of([lengths])
    assert lines == {"plain, 8192": [(50.0, 20.0, 20.0, 20.0)]}, "1024 tokens cannot reach it"
    document = {
        "gpu": "none",
        "model": "m",
        "command": "c",
        "commit": "1",
        "started": "",
        "finished": None,
        "cases": cases,
    }
    made = models_report.write({**document, "before": {}, "versions": {}}, tmp_path / "models.json")
    assert (tmp_path / "models.md").exists() and len(made) == 4
