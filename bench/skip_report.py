"""Results of ``bench skip``: as text, as a report, as a CSV file of each pass, and as pictures."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import goal, plot
from .names import DENSE, skip_name, stat_name
from .table import columns, findings, not_run_table, ratio, state_line

Document = dict[str, Any]
_CALL = ("phase", "mask", "dtype", "batch", "length", "layers", "window")
_SHAPE = ("case", "group", "inputs", *_CALL, "heads_q", "heads_kv", "head_dim", "head_dim_v")
_AT = ("factor", "threshold")
_COUNTED = ("visited", "skipped", "sparsity")
_STATISTICS = ("n", "median", "min", "max", "p10", "p90")
_SPEED = ("ms (p10-p90)", "over dense (p10-p90)", "allowed", "of it")
_HEADS = ("factor", "threshold", "wanted", "achieved", *_SPEED, "output changed by")


def _cells(case: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """A line of the table for each threshold, the dense kernel's first."""
    dense = "not run" if case["dense"] is None else _milliseconds(case["dense"])
    yield ("dense", "", "", "", dense, "", "", "", "")
    for point in case["points"]:
        counted, speed = point["sparsity"] is not None, point["speed"]
        yield (
            f"{point['factor']:g}",
            f"{point['threshold']:.3g}",
            f"{point['share']:.0%}" if case["inputs"] == "planted" else "",
            f"{point['sparsity']:.1%}" if counted else "not counted",
            _milliseconds(point["ms"]) if point["ms"] else "not run",
            ratio(speed) if speed else "",
            f"{point['allowed']:.3f}" if counted else "",
            f"{speed['median'] / point['allowed']:.3f}" if counted and speed else "",
            f"{point['changed']:.1e}" if speed else "",
        )


def _milliseconds(ms: dict[str, float]) -> str:
    return f"{ms['median']:.4f} ({ms['p10']:.4f}-{ms['p90']:.4f})"


def case_table(case: dict[str, Any]) -> str:
    """A row for a terminal."""
    lines = [f"\n== {case['case']}", columns([_HEADS, *_cells(case)]), *_said(case)]
    return "\n".join(lines)


def _said(case: dict[str, Any]) -> Iterator[str]:
    if case["left_out"]:
        factors = ", ".join(f"{factor:g}" for factor in case["left_out"])
        yield f"left out, since the threshold would be 1 or more: factor {factors}"
    yield from findings({"counts": None, "checks": case["checks"]})
    yield from (f"goal: {goal.goal_line(item)}" for item in case["goals"])
    if case["under_load"]:
        yield f"under load: {state_line(case['under_load'])}"


def summary(cases: Sequence[dict[str, Any]]) -> str:
    """A line for each row and goal: what was achieved at the largest threshold, and how fast that is."""
    return goal.summary(cases, ("dense ms", "most skipped", "over dense", "allowed"), _most)


def _most(case: dict[str, Any]) -> tuple[str, ...]:
    dense = f"{case['dense']['median']:.3f}" if case["dense"] else "not run"
    found = [point for point in case["points"] if point["speed"] and point["sparsity"] is not None]
    if not found:
        return dense, "", "", ""
    last = max(found, key=lambda point: float(point["sparsity"]))
    return dense, f"{last['sparsity']:.1%}", f"{last['speed']['median']:.3f}", f"{last['allowed']:.3f}"


def report(document: Document) -> str:
    """The report in Markdown: what it was measured on and with, and a table for each shape and kind of inputs."""
    versions = ", ".join(f"{name} {value}" for name, value in document["versions"].items() if value)
    lines = [f"# Skip-softmax on {document['gpu']}", "", f"`{document['command']}`", ""]
    lines += [f"- commit {document['commit']}, {document['started']} to {document['finished'] or 'its end, cut off'}"]
    lines += [f"- before: {state_line(document['before'])}", f"- versions: {versions}", ""]
    lines += [
        "Pass one counts with the stat kernel; pass two times the kernel that serves, and the dense one, in turn in",
        "every round on the same inputs. Threshold = factor / length. Speeds are medians of the ratio inside a round.",
        "Allowed: 1 / (1 - s Dv / (D + Dv)), since Q.K is always computed and K always read.",
    ]
    for shape in dict.fromkeys(case["shape"] for case in document["cases"]):
        lines += ["", f"## {shape}"]
        for case in document["cases"]:
            if case["shape"] == shape:
                lines += ["", f"### {case['inputs']} inputs", "", *_markdown([_HEADS, *_cells(case)]), ""]
                lines += [f"- {text}" for text in _said(case)]
    not_run = not_run_table(document["not_run"]) if document["not_run"] else "\nNothing: all of it ran."
    return "\n".join([*lines, "", "## Not run", not_run, ""])


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    made = ["| " + " | ".join(cells) + " |" for cells in rows]
    return [made[0], "|" + "---|" * len(rows[0]), *made[1:]]


def sparsity_rows(document: Document) -> Iterator[dict[str, object]]:
    """The CSV of pass one: a line for each row and threshold."""
    for case in document["cases"]:
        for point in case["points"]:
            if point["visited"] is not None:
                kernel = case["kernels"][stat_name(point["threshold"])]["kernel"]
                yield _of(case, _SHAPE) | _of(point, (*_AT, *_COUNTED)) | {"kernel": kernel}


def time_rows(document: Document) -> Iterator[dict[str, object]]:
    """The CSV of pass two: likewise, and a line without a threshold for the dense kernel."""
    for case in document["cases"]:
        dense = dict.fromkeys(_AT, "") | {"ms": case["dense"], "speed": None}
        for point in (dense, *case["points"]):
            if ms := point["ms"]:
                name = DENSE if point is dense else skip_name(point["threshold"])
                row = _of(case, _SHAPE) | _of(point, _AT) | {"kernel": case["kernels"][name]["kernel"]}
                row |= {f"ms_{key}": ms[key] for key in _STATISTICS}
                speed = point["speed"] or dict.fromkeys(_STATISTICS, "")
                yield row | {f"speed_{key}": speed[key] for key in _STATISTICS[1:]}


def _of(values: dict[str, Any], names: Sequence[str]) -> dict[str, object]:
    return {name: values[name] for name in names}


def write(document: Document, path: Path) -> list[str]:
    """Write CSV files, report and pictures beside the result file at ``path``; a line about each."""
    passes = {"sparsity": [*sparsity_rows(document)], "time": [*time_rows(document)]}
    made = []
    for name, rows in passes.items():
        file = path.with_name(f"{path.stem}-{name}.csv")
        with file.open("w", newline="", encoding="utf-8") as opened:
            writer = csv.DictWriter(opened, [*rows[0]] if rows else ["case"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        made.append(str(file))
    file = path.with_suffix(".md")
    file.write_text(report(document), encoding="utf-8")
    made.append(str(file))
    for group in dict.fromkeys(case["group"] for case in document["cases"]):
        cases = [case for case in document["cases"] if case["group"] == group]
        picture = path.with_name(f"{path.stem}-{group}.png")
        made.append(plot.draw({**document, "cases": cases, "group": group}, picture))
    return made
