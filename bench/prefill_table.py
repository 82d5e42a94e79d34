"""Results of ``bench rows`` as text."""

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
    errors = {item["of"]: f"{item['value']:.1e}" for item in case["checks"] if item["against"].startswith("float64")}
    body = [("", "ms", "p10-p90", "n", "TFLOP/s", "error", "over our dense", "our dense over it")]
    for row in case["rows"]:
        name, ms = row["name"], row["ms"]
        cells = (f"{ms['median']:.3f}", f"{ms['p10']:.3f}-{ms['p90']:.3f}", str(ms["n"]), f"{row['tflops']:.1f}")
        own, peer = speeds.get((name, DENSE), ""), speeds.get((DENSE, name), "")
        body.append((name, *cells, errors.get(name, ""), own, peer))
    lines = [f"\n== {case['case']}", columns(body), *findings(case)]
    return "\n".join([*lines, *(f"goal: {goal.goal_line(item)}" for item in case["goals"])])


def summary(cases: Sequence[dict[str, Any]]) -> str:
    """A line for each row and goal."""
    return goal.summary(cases, ("ours ms", "TFLOP/s", "best peer", "TFLOP/s", "over it"), _speeds)


def _speeds(case: dict[str, Any]) -> tuple[str, ...]:
    """Our dense kernel and the best peer."""
    rows = {row["name"]: row for row in case["rows"]}
    cells = ["not run", "", "none", "", ""]
    if own := rows.get(DENSE):
        cells[:2] = f"{own['ms']['median']:.3f}", f"{own['tflops']:.1f}"
    best = fastest({name: [row["ms"]["median"]] for name, row in rows.items()}, BEST)
    if best:
        cells[2:4] = best, f"{rows[best]['tflops']:.1f}"
    for item in case["comparisons"]:
        if (item["of"], item["over"]) == (DENSE, best):
            cells[4] = f"{item['speed']['median']:.3f}"
    return (*cells,)
