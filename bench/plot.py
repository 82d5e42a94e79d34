"""Speedup over sparsity as a picture, if matplotlib is there."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from .names import DENSE, is_ours

_WITH_GOALS = ("rows", "decode", "skip")  # kinds of results
Lines = dict[str, list[tuple[float, float, float, float]]]


def speedups(document: dict[str, Any]) -> Lines:
    """Points (sparsity, speedup, 10th, 90th percentile) per line: ours by shape, and fmha_v2 over its own dense."""
    if document["kind"] == "skip":
        return _speedups_of_points(document)
    if document["kind"] in _WITH_GOALS:
        return _speedups_of_rows(document)
    lines: Lines = {}
    for case in document["cases"]:
        if case.get("input") != "planted":
            continue
        for item in case["comparisons"]:
            ours = item["of"].startswith("ours skip") and item["over"] == DENSE
            theirs = item["of"].startswith("fmha_v2 skip") and item["over"] == "fmha_v2"
            if ours or theirs:
                who = "skimattn" if ours else "fmha_v2"
                speed = item["speed"]
                point = (case["counts"]["sparsity"], speed["median"], speed["p10"], speed["p90"])
                lines.setdefault(f"{who} {case['mask']} {case['seqlen'] // 1024}k", []).append(point)
    return {name: sorted(points) for name, points in lines.items()}


def _speedups_of_rows(document: dict[str, Any]) -> Lines:
    """Ours over our dense kernel, and, in the same unit, the best peer on the same inputs, which skips nothing."""
    lines: Lines = {}
    for case in document["cases"]:
        if case["group"] != "planted" or not case["counts"]:
            continue
        at = case["counts"]["sparsity"]
        for item in case["comparisons"]:
            if item["of"].startswith("ours skip") and item["over"] == DENSE:
                speed = item["speed"]
                lines.setdefault(f"skimattn {case['line']}", []).append(
                    (at, speed["median"], speed["p10"], speed["p90"])
                )
        times = {row["name"]: (row.get("us") or row["ms"])["median"] for row in case["rows"]}
        peers = [time for name, time in times.items() if not is_ours(name) and "skip" not in name]
        if peers and DENSE in times:
            best = times[DENSE] / min(peers)
            lines.setdefault(f"best peer {case['line']}", []).append((at, best, best, best))
    return {name: sorted(points) for name, points in lines.items()}


def _speedups_of_points(document: dict[str, Any]) -> Lines:
    """Every row is a line, from threshold to threshold."""
    lines: Lines = {}
    for case in document["cases"]:
        found = [point for point in case["points"] if point["speed"] and point["sparsity"] is not None]
        speeds = [(point["sparsity"], point["speed"]) for point in found]
        if found:
            points = [(at, speed["median"], speed["p10"], speed["p90"]) for at, speed in speeds]
            lines[f"skimattn {case['case']}"] = sorted(points)
    return lines


def draw(document: dict[str, Any], path: Path) -> str:
    """Draw to ``path``; says what was done, or why nothing was."""
    lines = speedups(document)
    if not lines:
        return "no picture: nothing with planted sparsity was measured"
    try:
        matplotlib = import_module("matplotlib")
    except ModuleNotFoundError:
        return "no picture: matplotlib is not installed (pip install matplotlib)"
    matplotlib.use("Agg")
    figure, axes = import_module("matplotlib.pyplot").subplots(figsize=(7.5, 5))
    bound = [step / 100 for step in range(101)]
    axes.plot(bound, [1 / (1 - s / 2) for s in bound], ":", color="gray", label="bound: Q·K stays, P·V is skipped")
    for name, points in lines.items():
        at, middle, low, high = (list(values) for values in zip(*points, strict=True))
        errors = [
            [m - lo for m, lo in zip(middle, low, strict=True)],
            [hi - m for m, hi in zip(middle, high, strict=True)],
        ]
        style = "o-" if name.startswith("skimattn") else "x--"
        axes.errorbar(at, middle, yerr=errors, fmt=style, capsize=3, label=name)
    axes.axhline(1, color="black", linewidth=0.5)
    axes.set_xlabel("skipped share of the visited tiles")
    whose = "our" if document["kind"] in _WITH_GOALS else "the same library's"
    axes.set_ylabel(f"speed over {whose} dense kernel")
    of = "planted inputs, " + document["cases"][0].get("dtype", "bf16")
    axes.set_title(f"{document['gpu']}, {document['kind']}, {document.get('group', of)}")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    return str(path)
