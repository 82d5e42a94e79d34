"""``python -m bench decode``: decode steps, ours and the peers interleaved, with what must be reached.

Calls are timed as replays of CUDA graphs, short ones many in a graph, in turn on as many caches as make 1 GB, which L2
does not hold; ours and the peers alike.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from . import decode_calls, machine, plot, results, table
from .decode_measure import Bench, measure
from .decode_table import case_table, summary
from .decode_work import GROUPS, WORKS, Work
from .timing import CudaTimer, graphed

_READ_ELEMENTS = 1 << 30  # of float32: 4 GB
_REPEATS = 20


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    made = argparse.ArgumentParser(prog="python -m bench decode", description=__doc__)
    made.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), help="of rows")
    made.add_argument("--only", nargs="+", default=[""], help="rows whose label holds one of these texts")
    made.add_argument("--exactly", help="the row with this label")
    made.add_argument(
        "--apart", action="store_true", help="each row in a process of its own, for peers that break others"
    )
    made.add_argument("--repeats", type=int, default=_REPEATS, help="rounds")
    names = list(decode_calls.LOADERS)
    made.add_argument("--peers", nargs="*", choices=names, default=names, metavar="PEER")
    made.add_argument("--list", action="store_true", help="print the rows and what they must reach, and end")
    made.add_argument("--out", type=Path, default=results.RESULTS, help="folder of the JSON and PNG files")
    return made


def chosen(options: argparse.Namespace) -> list[Work]:
    """The rows that the options ask for."""
    works = [w for w in WORKS if w.group in options.groups and any(text in w.label for text in options.only)]
    return [w for w in works if options.exactly in (None, w.label)]


def listing(works: Sequence[Work]) -> str:
    """The rows as a table."""
    body = [("", "group", "MB", "goals")]
    for work in works:
        goals = ", ".join(f"{goal.of} {goal.bar:g} {goal.over}" for goal in work.goals)
        body.append((work.label, work.group, f"{work.bytes / 1e6:.0f}", goals))
    return table.columns(body)


def run(works: Sequence[Work], bench: Bench, document: dict[str, Any], save: Callable[[], object]) -> bool:
    """Measure rows into ``document``, saving it after each; whether every check passed."""
    document["cases"] = []
    for work in works:
        try:
            case = measure(work, bench)
        finally:
            document["not_run"] = [asdict(item) for item in bench.not_run]
            save()
        document["cases"].append(case)
        save()
        print(case_table(case), flush=True)
        if bench.device == "cuda":
            torch.cuda.empty_cache()
    return all(item["passed"] for case in document["cases"] for item in case["checks"])


def run_apart(works: Sequence[Work], options: argparse.Namespace, document: dict[str, Any]) -> bool:
    """As :func:`run`, each row in a process of its own, whose results are added to ``document``."""
    document["cases"], document["not_run"], passed = [], [], True
    for work in works:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "bench", "decode", "--groups", work.group, "--exactly", work.label]
            command += ["--repeats", str(options.repeats), "--out", folder, "--peers", *options.peers]
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
            found = [results.load(path) for path in Path(folder).glob("*.json")]
        rows = [case for one in found for case in one.get("cases", ())]
        if not rows:
            print(f"{work.label}: exit status {done.returncode}\n{done.stderr[-2000:]}", file=sys.stderr)
            passed = False
        document["cases"] += rows
        document["not_run"] += [item for one in found for item in one.get("not_run", ())]
        passed &= done.returncode == 0
        for case in rows:
            print(case_table(case), flush=True)
    return passed


def _run_here(works: Sequence[Work], options: argparse.Namespace, document: dict[str, Any], path: Path) -> bool:
    makers, missing = decode_calls.load(options.peers)
    memory = torch.randn(_READ_ELEMENTS, device="cuda")
    read_bytes = memory.numel() * memory.element_size()
    bench = Bench("cuda", CudaTimer(), options.repeats, graphed, makers, memory.amax, read_bytes, not_run=missing)
    return run(works, bench, document, lambda: results.save(document, path))


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write JSON and PNG. Exit status 1 if an output was wrong or there is no GPU."""
    options = parser().parse_args(arguments)
    works = chosen(options)
    if not works:
        parser().error("--groups and --only: expected to leave a row (see --list)")
    if options.list:
        print(listing(works))
        return 0
    if not torch.cuda.is_available():
        print("bench decode: expected an NVIDIA GPU (torch sees none)", file=sys.stderr)
        return 1
    document = results.new_document("decode", arguments)
    name = torch.cuda.get_device_name()
    document |= {"gpu": name, "commit": machine.commit(), "versions": machine.versions(), "before": machine.gpu_state()}
    path = results.place(options.out, document, name)
    print(f"{name}; {table.state_line(document['before'])}; commit {document['commit']}", flush=True)
    passed = run_apart(works, options, document) if options.apart else _run_here(works, options, document, path)
    document["after"] = machine.gpu_state()
    results.finish(document)
    results.save(document, path)
    print(f"{table.not_run_table(document['not_run'])}\n\n{summary(document['cases'])}")
    print(f"\n{path}\n{plot.draw(document, path.with_suffix('.png'))}")
    return 0 if passed else 1
