"""Results as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .names import DENSE


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Aligned text: the first column to the left, the others to the right."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def ratio(speed: dict[str, float]) -> str:
    """A speed with its spread, such as ``1.025 (1.020-1.031)``."""
    return f"{speed['median']:.3f} ({speed['p10']:.3f}-{speed['p90']:.3f})"


def case_table(case: dict[str, Any]) -> str:
    """The table of one case. Speeds in parentheses: 10th to 90th percentile over rounds."""
    speeds = {(item["of"], item["over"]): ratio(item["speed"]) for item in case["comparisons"]}
    head = ("", "ms", "p10-p90", "n", "TFLOP/s", "over our dense", "our dense over it", "over our skip")
    body = [head]
    for row in case["rows"]:
        name, ms = row["name"], row["ms"]
        skip = next((speeds[of, over] for of, over in speeds if of == name and over.startswith("ours skip")), "")
        spread = f"{ms['p10']:.3f}-{ms['p90']:.3f}"
        own, peer = speeds.get((name, DENSE), ""), speeds.get((DENSE, name), "")
        body.append((name, f"{ms['median']:.3f}", spread, str(ms["n"]), f"{row['tflops']:.1f}", own, peer, skip))
    load = f"under load: {state_line(case['under_load'])}"
    return "\n".join([f"\n== {case['case']}", columns(body), *findings(case), load])


def findings(case: dict[str, Any]) -> list[str]:
    """Lines about what was counted and checked."""
    lines = []
    if counts := case["counts"]:
        lines.append(f"tiles: {counts['skipped']} of {counts['visited']} skipped, sparsity {counts['sparsity']:.4f}")
    worst = max((check["value"] for check in case["checks"] if check["against"].startswith("float64")), default=0.0)
    failed = [check for check in case["checks"] if not check["passed"]]
    lines.append(f"checks: {len(case['checks']) - len(failed)} passed, worst error to float64 {worst:.1e}")
    lines += [f"FAILED: {item['of']}: {item['against']}: {item['value']:g} > {item['limit']:g}" for item in failed]
    return lines


def state_line(state: dict[str, Any]) -> str:
    """Clocks, power and temperature in one line."""
    return ", ".join(f"{name} {value:g}" if isinstance(value, float) else str(value) for name, value in state.items())


def not_run_table(not_run: Sequence[dict[str, str]]) -> str:
    """Which peers did not run, where and why; says so too when all did."""
    if not not_run:
        return "\nevery peer that was asked for ran in every case"
    return "\n" + "\n".join(f"NOT RUN: {item['peer']}, {item['case']}: {item['reason']}" for item in not_run)
