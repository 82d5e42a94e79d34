"""Results of ``bench decode`` as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import goal
from .compare import fastest
from .names import BEST, DENSE
from .table import columns, findings, ratio


def case_table(case: dict[str, Any]) -> str:
    """The table of one row. Speeds in parentheses: 10th to 90th percentile over rounds."""
    speeds = {(item["of"], item["over"]): ratio(item["speed"]) for item in case["comparisons"]}
    body = [("", "us", "p10-p90", "n", "TB/s", "of plain read", "over our dense", "our dense over it")]
    for row in case["rows"]:
        name, us = row["name"], row["us"]
        spread = f"{us['p10']:.1f}-{us['p90']:.1f}"
        share = f"{row['tbs'] / case['read_tbs']:.3f}"
        own, peer = speeds.get((name, DENSE), ""), speeds.get((DENSE, name), "")
        body.append((name, f"{us['median']:.1f}", spread, str(us["n"]), f"{row['tbs']:.3f}", share, own, peer))
    head = f"\n== {case['case']} ({case['bytes'] / 1e6:.0f} MB, {case['copies']} caches in turn)"
    lines = [head, columns(body), f"plain read {case['read_tbs']:.3f} TB/s", *findings(case)]
    return "\n".join([*lines, *(f"goal: {goal.goal_line(item)}" for item in case["goals"])])


def summary(cases: Sequence[dict[str, Any]]) -> str:
    """A line for each row and goal; rows without a goal once."""
    return goal.summary(cases, ("ours us", "TB/s", "of read", "best peer", "us", "over it"), _speeds)


def _speeds(case: dict[str, Any]) -> tuple[str, ...]:
    """Our dense kernel and the best peer."""
    rows = {row["name"]: row for row in case["rows"]}
    cells = ["not run", "", "", "none", "", ""]
    if own := rows.get(DENSE):
        share = own["tbs"] / case["read_tbs"]
        cells[:3] = f"{own['us']['median']:.1f}", f"{own['tbs']:.3f}", f"{share:.3f}"
    best = fastest({name: [row["us"]["median"]] for name, row in rows.items()}, BEST)
    if best:
        cells[3:5] = best, f"{rows[best]['us']['median']:.1f}"
    for item in case["comparisons"]:
        if (item["of"], item["over"]) == (DENSE, best):
            cells[5] = f"{item['speed']['median']:.3f}"
    return (*cells,)
