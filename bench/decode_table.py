"""Results of ``bench decode`` as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .decode_measure import fastest
from .names import BEST, DENSE, READ
from .table import columns, ratio


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
    lines = [head, columns(body), f"plain read {case['read_tbs']:.3f} TB/s"]
    if counts := case["counts"]:
        lines.append(f"tiles: {counts['skipped']} of {counts['visited']} skipped, sparsity {counts['sparsity']:.4f}")
    worst = max((check["value"] for check in case["checks"] if check["against"].startswith("float64")), default=0.0)
    failed = [check for check in case["checks"] if not check["passed"]]
    lines.append(f"checks: {len(case['checks']) - len(failed)} passed, worst error to float64 {worst:.1e}")
    lines += [f"FAILED: {item['of']}: {item['against']}: {item['value']:g} > {item['limit']:g}" for item in failed]
    lines += [f"goal: {goal_line(goal)}" for goal in case["goals"]]
    return "\n".join(lines)


def goal_line(goal: dict[str, Any]) -> str:
    """Such as ``ours dense over fa3 graph 1.021, wanted 1: reached``."""
    measured = "not run" if goal["value"] is None else f"{goal['value']:.3f}"
    verdict = "reached" if goal["passed"] else "MISSED"
    return f"{goal['of']} over {goal['over']} {measured}, wanted {goal['bar']:g}: {verdict}"


def summary(cases: Sequence[dict[str, Any]]) -> str:
    """A line for each row and goal; rows without a goal once."""
    body = [("", "ours us", "TB/s", "of read", "best peer", "us", "over it", "goal", "measured", "over goal", "")]
    for case in cases:
        head = (case["case"], *_speeds(case))
        for goal in case["goals"] or [None]:
            body.append((*head, *_goal_cells(goal)))
            head = ("",) * len(head)
    goals = [goal for case in cases for goal in case["goals"]]
    reached = sum(goal["passed"] for goal in goals)
    return f"{columns(body)}\n{reached} of {len(goals)} goals reached"


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


def _goal_cells(goal: dict[str, Any] | None) -> tuple[str, ...]:
    if goal is None:
        return ("",) * 4
    of = goal["of"].removeprefix("ours ")
    name = (
        f"{of} over {goal['over']} >= {goal['bar']:g}" if goal["over"] != READ else f"{of} of read >= {goal['bar']:g}"
    )
    if goal["value"] is None:
        return name, "not run", "", "MISS"
    return name, f"{goal['value']:.3f}", f"{goal['value'] / goal['bar']:.3f}", "pass" if goal["passed"] else "MISS"
