"""Results of ``bench models``: as text, as a report, and as pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from .table import columns, state_line

Document = dict[str, Any]
Case = dict[str, Any]


def _percent(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{100 * value:.{digits}f}"


def _added(added: dict[str, float]) -> str:
    return f"{100 * added['mean']:+.2f} ({100 * added['low']:+.2f} to {100 * added['high']:+.2f})"


def case_table(case: Case) -> str:
    """A case for a terminal."""
    if "failed" in case:
        return f"\n== {case['case']}: {case['failed']}"
    return "\n".join([f"\n== {case['case']}", columns([*_rows(case)]), *_said(case)])


def _rows(case: Case) -> Iterator[tuple[str, ...]]:
    if case["part"] == "curves":
        kinds = [*next((point["by_text"] for point in case["points"] if "share" in point), {})]
        yield ("target %", "skipped %", "perplexity + % (95 %)", *kinds)
        for point in case["points"]:
            if "share" not in point:
                yield (_percent(point["target"]), "cannot be had", *[""] * (1 + len(kinds)))
                continue
            by_text = [_added(point["by_text"][kind]) for kind in kinds]
            yield (_percent(point["target"]), _percent(point["share"]), _added(point["added"]), *by_text)
    elif case["part"] == "needles":
        yield ("target %", "found", "lost")
        for point in case["points"]:
            cells = (f"{point['found']} of {case['texts']}", str(point["lost"])) if "found" in point else ("", "")
            yield (_percent(point["target"]), *cells)
    else:
        lengths = list(dict.fromkeys(row["length"] for row in case["rows"]))
        yield ("target %", *(f"{length} tokens" for length in lengths))
        for target in dict.fromkeys(row["target"] for row in case["rows"]):
            rows = [row for row in case["rows"] if row["target"] == target]
            yield (_percent(target), *(_reached(row) for row in rows))


def _reached(row: Case) -> str:
    return _percent(row["share"]) + ("" if row["target"] <= row["most"] else f" (at most {_percent(row['most'])})")


def _said(case: Case) -> Iterator[str]:
    if case["part"] == "curves":
        cost = case["calibration"]
        yield f"dense perplexity {case['perplexity']:.3f}, {case['windows']} windows of {case['length']} tokens; "
        yield f"calibration {cost['seconds']:.0f} s, {cost['runs']} runs beyond those of the methods before"
        for goal in case["at_goals"]:
            yield f"at {_percent(goal['share'], 0)} % skipped {_percent(goal['added'], 2) or 'not reached'} % " + (
                f"(wanted {_percent(goal['bar'])}); at +{_percent(goal['bar'])} % {_percent(goal['share_at_bar'])} %"
            )
    elif case["part"] == "needles":
        yield f"dense finds {case['dense']} of {case['texts']}"
    else:
        off = f"{_percent(case['rms'])} points (rms), {_percent(case['worst'])} at most"
        yield f"where targets can be had: off by {off}"


def summary(cases: Sequence[Case]) -> str:
    """A line for each curve and fit."""
    body = [("", "skipped % at +0.3 %", "at +1.0 %", "calibration s", "off by, rms", "worst")]
    for case in cases:
        if "failed" in case or case["part"] == "needles":
            continue
        if case["part"] == "curves":
            at = [_percent(goal["share_at_bar"]) for goal in case["at_goals"]]
            body.append((case["case"], *at, f"{case['calibration']['seconds']:.0f}", "", ""))
        else:
            body.append((case["case"], "", "", "", _percent(case["rms"]), _percent(case["worst"])))
    return columns(body)


def report(document: Document) -> str:
    """All of it in Markdown."""
    versions = ", ".join(f"{name} {value}" for name, value in document["versions"].items() if value)
    lines = [f"# {document['model']} on {document['gpu']}", "", f"`{document['command']}`", ""]
    lines += [f"- commit {document['commit']}, {document['started']} to {document['finished'] or 'its end, cut off'}"]
    lines += [f"- {state_line(document['before'])}", f"- versions: {versions}", "", "```", summary(document["cases"])]
    return "\n".join([*lines, *(case_table(case) for case in document["cases"]), "```", ""])


def write(document: Document, path: Path) -> list[str]:
    """Report and pictures beside the result file at ``path``; a line about each."""
    path.with_suffix(".md").write_text(report(document), encoding="utf-8")
    made = [str(path.with_suffix(".md"))]
    for part in ("curves", "needles", "lengths"):
        for phase in ("prefill", "decode"):
            cases = [case for case in document["cases"] if (case["part"], case["phase"]) == (part, phase)]
            cases = [case for case in cases if "failed" not in case]
            if cases:
                made.append(draw(document, cases, path.with_name(f"{path.stem}-{part}-{phase}.png")))
    return made


def lines_of(cases: Sequence[Case]) -> dict[str, list[tuple[float, float, float, float]]]:
    """Points (x, y, low, high) of a picture, by name of the line; in percent."""
    made: dict[str, list[tuple[float, float, float, float]]] = {}
    for case in cases:
        if case["part"] == "curves":
            points = [
                (point["share"], *(point["added"][name] for name in ("mean", "low", "high")))
                for point in case["points"]
                if "share" in point
            ]
            made[case["method"]] = _in_percent(points)
        elif case["part"] == "needles":
            shares = [(point["target"], point["found"] / case["texts"]) for point in case["points"] if "found" in point]
            made[case["method"]] = _in_percent([(at, share, share, share) for at, share in shares])
        else:
            rows = [row for row in case["rows"] if row["target"] <= row["most"]]
            for length in dict.fromkeys(row["length"] for row in rows):
                of_length = [(row["target"], row["share"]) for row in rows if row["length"] == length]
                made[f"{case['way']}, {length}"] = _in_percent([(at, got, got, got) for at, got in of_length])
    return made


def _in_percent(points: Sequence[tuple[float, ...]]) -> list[tuple[float, float, float, float]]:
    return sorted(tuple(100 * one for one in point) for point in points)  # type: ignore[misc]


_AXES = {
    "curves": ("skipped % of the tiles", "perplexity + %"),
    "needles": ("target, % of the tiles", "needles found, %"),
    "lengths": ("target, % of the tiles", "skipped % of the tiles"),
}


def draw(document: Document, cases: Sequence[Case], path: Path) -> str:
    """One picture; says where it is, or why there is none."""
    try:
        import_module("matplotlib").use("Agg")
    except ModuleNotFoundError:
        return "no picture: matplotlib is not installed (pip install matplotlib)"
    part, phase = cases[0]["part"], cases[0]["phase"]
    figure, axes = import_module("matplotlib.pyplot").subplots(figsize=(8, 5.5))
    for name, points in lines_of(cases).items():
        if points:
            at, middle, low, high = (list(values) for values in zip(*points, strict=True))
            spread = [
                [m - lo for m, lo in zip(middle, low, strict=True)],
                [h - m for m, h in zip(middle, high, strict=True)],
            ]
            axes.errorbar(at, middle, yerr=spread, fmt="o-", capsize=3, label=name)
    if part == "lengths":
        axes.plot([0, 100], [0, 100], ":", color="gray")
    if part == "curves":
        axes.set_yscale("symlog", linthresh=1)
    axes.set_xlabel(_AXES[part][0])
    axes.set_ylabel(_AXES[part][1])
    axes.set_title(f"{document['model']}, {phase}, {document['gpu']}")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=110, bbox_inches="tight")
    import_module("matplotlib.pyplot").close(figure)
    return str(path)
