"""Goals of measured rows, and the lines that say what came out of them: shared by commands whose rows have goals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .names import READ
from .table import columns


@dataclass(frozen=True)
class Goal:
    """``of`` must reach ``bar`` times the speed of ``over``: one of ours, the plain read's bandwidth, or peers.

    Args:
        of: name of our kernel.
        over: name of what is compared with. That of a peer stands for the fastest of its variants that skip nothing.
        bar: the least speed.
        instead: another goal that counts as well.
    """

    of: str
    over: str
    bar: float
    instead: Goal | None = None


def goal_line(goal: dict[str, Any]) -> str:
    """Such as ``ours dense over fa3 graph 1.021, wanted 1: reached``."""
    measured = "not run" if goal["value"] is None else f"{goal['value']:.3f}"
    verdict = "reached" if goal["passed"] else "MISSED"
    return f"{goal['of']} over {goal['over']} {measured}, wanted {goal['bar']:g}: {verdict}"


def summary(
    cases: Sequence[dict[str, Any]], heads: Sequence[str], cells: Callable[[dict[str, Any]], Sequence[str]]
) -> str:
    """A line for each row and goal, rows without a goal once; ``cells`` under ``heads`` describe a row."""
    body = [("", *heads, "goal", "measured", "over goal", "")]
    for case in cases:
        head = (case["case"], *cells(case))
        for goal in case["goals"] or [None]:
            body.append((*head, *_goal_cells(goal)))
            head = ("",) * len(head)
    goals = [goal for case in cases for goal in case["goals"]]
    reached = sum(goal["passed"] for goal in goals)
    unknown = sum(goal["value"] is None for goal in goals)
    without = f", {unknown} not measured" if unknown else ""
    return f"{columns(body)}\n{reached} of {len(goals)} goals reached{without}"


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
