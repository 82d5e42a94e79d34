"""``python -m bench accept FILE...``: result files beside what must be reached. Needs no GPU; exit status 1 on a miss.

Give one file each of ``bench prefill``, ``rows``, ``decode`` and ``statlog`` (figures of a table belong to one run),
and those of ``bench ragged``, ``host``, ``skip``, ``models`` and ``build``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import accept_models, decode_work, prefill_work, results, statlog_work
from .command import Row as Work
from .names import DENSE, RAGGED, REPEATED, SKIP_NOTHING, THRESHOLD, UNIFORM, skip_name, stat_name
from .table import columns

Document = dict[str, Any]
_HEADS = {"heads_q": 64, "heads_kv": 4, "head_dim": 128, "dtype": "bf16", "batch": 1}
SHAPES = (("causal", 16384), ("causal", 65536), ("full", 16384))
DENSE_OVER_FA4 = 0.95
NOTHING_SKIPPED = 0.96
PLANTED = {0.5: 1.22, 0.75: 1.45, 0.9: 1.65}
STAT_OVER_SKIP = 0.97
RAGGED_OVER_UNIFORM = 1 / 1.3
COMPILE_SECONDS = 3.0
COMPILE_MB = 1e9 / 2**20  # 1 GB in the MB (2**20 bytes) of the build log
SET_SECONDS = 12 * 60.0
SET_CORES = 2
HOST_MICROSECONDS = 12.0


@dataclass(frozen=True)
class Row:
    """One requirement. ``value`` None: not measured, which is a miss. ``at_least`` False: the bar is an upper bound."""

    name: str
    bar: float
    value: float | None
    at_least: bool = True
    note: str = ""

    @property
    def passed(self) -> bool:
        """NaN and what was not measured never pass."""
        if self.value is None:
            return False
        return self.value >= self.bar if self.at_least else self.value <= self.bar


def find_case(document: Document, mask: str, seqlen: int, planted: float | None) -> Document | None:
    """The case with the heads of the table; None if it was not measured."""
    wanted = {**_HEADS, "mask": mask, "seqlen": seqlen, "planted": planted}
    return next((case for case in document["cases"] if all(case[name] == wanted[name] for name in wanted)), None)


def speed(case: Document | None, of: str, over: str) -> float | None:
    """The median speed of one contender over another."""
    found = (item["speed"] for item in case["comparisons"] if (item["of"], item["over"]) == (of, over)) if case else ()
    return next((float(item["median"]) for item in found), None)


def worst(values: Iterable[tuple[str, float | None]]) -> tuple[float | None, str]:
    """The lowest of named values and its name; (None, name) as soon as one was not measured."""
    lowest, where = None, ""
    for name, value in values:
        if value is None or value != value:
            return None, f"not measured: {name}"
        if lowest is None or value < lowest:
            lowest, where = value, name
    return lowest, where


def prefill_rows(document: Document) -> Iterator[Row]:
    """The rows about speed, and that everything that was timed was right."""
    for mask, seqlen in SHAPES:
        name = f"dense {mask} {seqlen // 1024}k over fa4"
        yield Row(name, DENSE_OVER_FA4, speed(find_case(document, mask, seqlen, None), DENSE, "fa4"))
    for mask, seqlen in SHAPES:
        value, where = worst(_nothing_skipped(document, mask, seqlen))
        yield Row(f"skip nothing {mask} {seqlen // 1024}k over dense", NOTHING_SKIPPED, value, note=where)
    for share, bar in PLANTED.items():
        for mask, seqlen in SHAPES:
            case = find_case(document, mask, seqlen, share)
            note = f"{case['counts']['sparsity']:.3f} skipped" if case else ""
            value = speed(case, skip_name(THRESHOLD), DENSE)
            yield Row(f"planted {share:.0%} {mask} {seqlen // 1024}k over dense", bar, value, note=note)
    for mask, seqlen in SHAPES:
        value, where = worst(_stat_over_skip(document, mask, seqlen))
        yield Row(f"stat {mask} {seqlen // 1024}k over skip", STAT_OVER_SKIP, value, note=where)
    checks = [check for case in document["cases"] for check in case["checks"]]
    failed = sum(not check["passed"] for check in checks)
    yield Row("outputs and counts that are wrong", 0, failed if checks else None, False, f"{len(checks)} checks")


def _nothing_skipped(document: Document, mask: str, seqlen: int) -> Iterator[tuple[str, float | None]]:
    normal = find_case(document, mask, seqlen, None)
    for threshold in SKIP_NOTHING:
        yield f"N(0,1), threshold {threshold:g}", speed(normal, skip_name(threshold), DENSE)
    yield "planted 0%", speed(find_case(document, mask, seqlen, 0.0), skip_name(THRESHOLD), DENSE)


def _stat_over_skip(document: Document, mask: str, seqlen: int) -> Iterator[tuple[str, float | None]]:
    threshold = SKIP_NOTHING[-1]
    normal = find_case(document, mask, seqlen, None)
    yield "N(0,1)", speed(normal, stat_name(threshold), skip_name(threshold))
    for share in PLANTED:
        case = find_case(document, mask, seqlen, share)
        yield f"planted {share:.0%}", speed(case, stat_name(THRESHOLD), skip_name(THRESHOLD))


def goal_rows(kind: str, works: Iterable[Work], document: Document) -> Iterator[Row]:
    """The goals of every row of ``bench decode`` or ``bench rows``, and that everything that was timed was right."""
    cases = {case["case"]: case for case in document["cases"]}
    for work in works:
        case = cases.get(work.label)
        for index, goal in enumerate(work.goals):
            name = f"{kind}, {work.label}: {goal.of} over {goal.over}"
            if not case:
                yield Row(name, goal.bar, None)
                continue
            found = case["goals"][index]
            yield Row(name, found["bar"], found["value"], note="" if found["over"] == goal.over else found["over"])
    checks = [check for case in document["cases"] for check in case["checks"]]
    failed = sum(not check["passed"] for check in checks)
    yield Row(
        f"{kind} outputs and counts that are wrong", 0, failed if checks else None, False, f"{len(checks)} checks"
    )


def skip_rows(documents: Sequence[Document]) -> Iterator[Row]:
    """What real inputs must reach, whose rows are those of the files, and that everything that was timed was right."""
    cases = [case for document in documents for case in document["cases"]]
    for case in cases:
        for goal in case["goals"]:
            yield Row(f"skip, {case['case']}: {goal['of']} over {goal['over']}", goal["bar"], goal["value"])
    checks = [check for case in cases for check in case["checks"]]
    failed = sum(not check["passed"] for check in checks)
    yield Row("skip outputs and counts that are wrong", 0, failed if checks else None, False, f"{len(checks)} checks")


def ragged_rows(document: Document) -> Iterator[Row]:
    """The rows about ragged batches that uniform ones could replace, and that everything that was timed was right."""
    speeds = [(case["case"], speed(case, RAGGED, UNIFORM)) for case in document["cases"]]
    value, where = worst(pair for pair in speeds if pair[1] is not None)
    yield Row("ragged over uniform", RAGGED_OVER_UNIFORM, value, note=where)
    checks = [check for case in document["cases"] for check in case["checks"]]
    failed = sum(not check["passed"] for check in checks)
    yield Row("ragged outputs that are wrong", 0, failed if checks else None, False, f"{len(checks)} checks")


def host_rows(document: Document) -> Iterator[Row]:
    """The row about host time."""
    found = (row["us"]["median"] for row in document["rows"] if row["name"] == REPEATED)
    yield Row("host us of a repeated launch", HOST_MICROSECONDS, next(found, None), False)


def build_rows(documents: Sequence[Document]) -> Iterator[Row]:
    """The rows about compiling: per kernel from a run on one core, the whole set from one on two cores."""
    whole = [item for item in documents if item["kernels"] == item["set_size"]]
    single = next((item for item in documents if item["cores"] == 1), None)
    note = f"{single['kernels']} of {single['set_size']} kernels" if single else "bench build --compile --cores 1"
    median, peak = (single["median_seconds"], single["max_peak_mb"]) if single else (None, None)
    yield Row("compile seconds, one core, median", COMPILE_SECONDS, median, False, note)
    yield Row("compile peak MB, largest", round(COMPILE_MB, 1), peak, False, note)
    pair = next((item for item in whole if item["cores"] == SET_CORES), None)
    note = "" if pair else "bench build --compile --cores 2"
    yield Row("default set on 2 cores, seconds", SET_SECONDS, pair["wall_seconds"] if pair else None, False, note)


def rows_of(documents: Sequence[Document], partial: bool = False) -> list[Row]:
    """All rows. Without ``partial``, those of a kind of file that was not given count as not measured.

    Raises:
        ValueError: more than one file of a kind other than build, skip and models, or a run that did not finish.
    """
    kinds: dict[str, list[Document]] = {kind: [] for kind in results.KINDS}
    for document in documents:
        kinds[document["kind"]].append(document)
    for kind in ("prefill", "rows", "decode", "ragged", "host", "statlog"):
        if len(kinds[kind]) > 1:
            raise ValueError(f"{kind}: expected one file, its figures belong to one run (got {len(kinds[kind])})")
    unfinished = [item["kind"] for item in documents if not item["finished"]]
    if unfinished:
        raise ValueError(f"{', '.join(unfinished)}: expected a run that finished (got one that was cut off)")
    rows: list[Row] = []
    if kinds["prefill"] or not partial:
        rows += prefill_rows(next(iter(kinds["prefill"]), {"cases": []}))
    tables: dict[str, Sequence[Work]] = {"rows": prefill_work.WORKS, "decode": decode_work.WORKS}
    tables["statlog"] = statlog_work.WORKS
    for kind, works in tables.items():
        if kinds[kind] or not partial:
            rows += goal_rows(kind, works, next(iter(kinds[kind]), {"cases": []}))
    if kinds["skip"] or not partial:
        rows += skip_rows(kinds["skip"])
    if kinds["models"] or not partial:
        found = accept_models.figures(kinds["models"])
        rows += [Row(name, bar, value, False, note) for name, bar, value, note in found]
    if kinds["ragged"] or not partial:
        rows += ragged_rows(next(iter(kinds["ragged"]), {"cases": []}))
    if kinds["host"] or not partial:
        rows += host_rows(next(iter(kinds["host"]), {"rows": []}))
    if kinds["build"] or not partial:
        rows += build_rows(kinds["build"])
    return rows


def accept_table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    body = [("", "must reach", "measured", "", "")]
    for row in rows:
        value = "not measured" if row.value is None else f"{row.value:.3f}"
        bar = f"{'>=' if row.at_least else '<='} {row.bar:g}"
        body.append((row.name, bar, value, "pass" if row.passed else "MISS", row.note))
    return columns(body)


def main(arguments: Sequence[str]) -> int:
    """Print pass or miss per row; exit status 1 if there is a miss, 2 if a file cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m bench accept", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--partial", action="store_true", help="only rows of the kinds of files that are given")
    options = parser.parse_args(arguments)
    try:
        documents = [results.load(path) for path in options.files]
        rows = rows_of(documents, options.partial)
    except (OSError, ValueError) as error:
        print(f"bench accept: {error}", file=sys.stderr)
        return 2
    for document in documents:
        where = document.get("gpu") or document.get("machine")
        print(f"{document['kind']}: {where}, {document['started']}, commit {document['commit']}")
    print(accept_table(rows))
    missed = sum(not row.passed for row in rows)
    print(f"{len(rows) - missed} of {len(rows)} reached")
    return 1 if missed else 0
