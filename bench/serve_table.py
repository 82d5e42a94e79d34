"""Results of ``bench serve``: as text, and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from .goal import goal_line
from .serve_plan import METRICS, PEER
from .table import columns, ratio

Case = dict[str, Any]
_HEAD = (
    "",
    "skipped in prefill",
    "in decode",
    "ttft ms",
    "p90",
    "p99",
    "over vllm",
    "tpot ms",
    "p90",
    "p99",
    "over vllm",
)


def case_table(case: Case) -> str:
    """A row for a terminal."""
    how = "servers one after the other" if case["apart"] else "servers in turns"
    head = f"\n== {case['case']}: {case['rounds']} rounds of {case['requests']} requests, {how}"
    return "\n".join([head, columns([_HEAD, *_cells(case)]), *_said(case)])


def _cells(case: Case) -> Iterator[tuple[str, ...]]:
    speeds = {(one["of"], one["metric"]): one["speed"] for one in case["comparisons"] if one["over"] == PEER}
    for row in case["rows"]:
        cells = [row["name"], *(_percent(row["sparsity"].get(phase)) for phase in ("prefill", "decode"))]
        for metric in METRICS:
            times, speed = row[metric], speeds.get((row["name"], metric))
            cells += [f"{times[name]:.2f}" for name in ("median", "p90", "p99")]
            cells.append(ratio(speed) if speed else "")
        yield tuple(cells)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _said(case: Case) -> Iterator[str]:
    for row in case["rows"]:
        if bound := row.get("allowed"):
            yield (
                f"{row['name']}: attention is {bound['share']:.1%} of {bound['metric']}, and {bound['speedup']:.3f} "
                f"times as fast, which allows {bound['speed']:.3f}"
            )
    yield from (f"goal: {goal_line(goal)}" for goal in case["goals"])


def summary(cases: Sequence[Case]) -> str:
    """How many goals were reached."""
    goals = [goal for case in cases for goal in case["goals"]]
    unknown = sum(goal["value"] is None for goal in goals)
    said = f"\n{sum(goal['passed'] for goal in goals)} of {len(goals)} goals reached"
    return said + (f", {unknown} not measured" if unknown else "")


def draw(document: Case, path: Path) -> str:
    """Speed over vLLM's own attention, a group of bars for each row; says where it is, or why there is none."""
    try:
        import_module("matplotlib").use("Agg")
    except ModuleNotFoundError:
        return "no picture: matplotlib is not installed (pip install matplotlib)"
    figure, panels = import_module("matplotlib.pyplot").subplots(2, 1, figsize=(9, 7), layout="constrained")
    cases = document["cases"]
    for metric, axes in zip(METRICS, panels, strict=True):
        names = list(dict.fromkeys(one["of"] for case in cases for one in case["comparisons"] if one["over"] == PEER))
        width = 0.8 / max(1, len(names))
        for place, name in enumerate(names):
            found = [(at, _speed_of(case, name, metric)) for at, case in enumerate(cases)]
            bars = [(at + place * width, speed) for at, speed in found if speed]
            heights = [speed["median"] for _, speed in bars]
            spread = [
                [speed["median"] - speed["p10"] for _, speed in bars],
                [speed["p90"] - speed["median"] for _, speed in bars],
            ]
            axes.bar([at for at, _ in bars], heights, width, yerr=spread, capsize=2, label=name)
        axes.axhline(1, color="black", linewidth=0.5)
        axes.set_xticks([at + 0.4 - width / 2 for at in range(len(cases))], [case["case"] for case in cases])
        axes.set_ylabel(f"{metric}: speed over vLLM's own")
    panels[0].legend(fontsize="small")
    panels[0].set_title(f"{document['gpu']}, vLLM {document['versions'].get('vllm')}")
    figure.savefig(path, dpi=110)
    import_module("matplotlib.pyplot").close(figure)
    return str(path)


def _speed_of(case: Case, name: str, metric: str) -> dict[str, float] | None:
    found = (one for one in case["comparisons"] if (one["of"], one["over"], one["metric"]) == (name, PEER, metric))
    return next((one["speed"] for one in found), None)
