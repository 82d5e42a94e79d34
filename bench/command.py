"""A command that measures rows with goals: its options, its rows in turn or each in a process, its result file."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch

from . import machine, plot, results, table
from .goal import Goal
from .peers import NotRun


class Row(Protocol):
    """What is measured at once."""

    @property
    def label(self) -> str:
        """Its name, which no other row has."""
        ...

    @property
    def group(self) -> str:
        """For choosing rows."""
        ...

    @property
    def goals(self) -> tuple[Goal, ...]:
        """What must be reached."""
        ...


class Bench(Protocol):
    """What every row of a run shares."""

    device: str
    not_run: list[NotRun]


R = TypeVar("R", bound=Row)
B = TypeVar("B", bound=Bench)


@dataclass(frozen=True)
class Command(Generic[R, B]):
    """A command of ``python -m bench``.

    Args:
        name: of the command, and the kind of its result files.
        doc: what ``--help`` says.
        works: its rows.
        peers: names of those that can be asked for; none: nothing is compared with others.
        repeats: rounds, unless told otherwise.
        size: heading and cell of the column of ``--list`` that tells how large a row is.
        bench: loads the peers that the options ask for.
        measure: checks and times a row; the result is plain data with ``case``, ``goals`` and ``checks``.
        case_table: the text of such a result.
        summary: the text of all of them.
    """

    name: str
    doc: str
    works: Sequence[R]
    peers: Sequence[str]
    repeats: int
    size: tuple[str, Callable[[R], str]]
    bench: Callable[[argparse.Namespace], B]
    measure: Callable[[R, B], dict[str, Any]]
    case_table: Callable[[dict[str, Any]], str]
    summary: Callable[[Sequence[dict[str, Any]]], str]

    @property
    def groups(self) -> tuple[str, ...]:
        """Of the rows, in their order."""
        return tuple(dict.fromkeys(work.group for work in self.works))

    def parser(self) -> argparse.ArgumentParser:
        """The options."""
        made = argparse.ArgumentParser(prog=f"python -m bench {self.name}", description=self.doc)
        made.add_argument("--groups", nargs="+", choices=self.groups, default=list(self.groups), help="of rows")
        made.add_argument("--only", nargs="+", default=[""], help="rows whose label holds one of these texts")
        made.add_argument("--exactly", help="the row with this label")
        made.add_argument("--repeats", type=int, default=self.repeats, help="rounds")
        if self.peers:
            apart = "each row in a process of its own, for peers that break others"
            made.add_argument("--apart", action="store_true", help=apart)
            made.add_argument("--peers", nargs="*", choices=self.peers, default=list(self.peers), metavar="PEER")
        else:
            made.set_defaults(apart=False, peers=[])
        made.add_argument("--list", action="store_true", help="print the rows and what they must reach, and end")
        made.add_argument("--out", type=Path, default=results.RESULTS, help="folder of the JSON and PNG files")
        return made

    def chosen(self, options: argparse.Namespace) -> list[R]:
        """The rows that the options ask for; ``ValueError`` or ``OSError`` if they cannot be."""
        works = [
            w
            for w in self.all_works(options)
            if w.group in options.groups and any(text in w.label for text in options.only)
        ]
        return [w for w in works if options.exactly in (None, w.label)]

    def all_works(self, options: argparse.Namespace) -> Sequence[R]:
        """The rows to choose from: a command may add some that its options name."""
        del options
        return self.works

    def listing(self, works: Sequence[R]) -> str:
        """Rows as a table."""
        heading, cell = self.size
        body = [("", "group", heading, "goals")]
        for work in works:
            goals = ", ".join(f"{goal.of} {goal.bar:g} {goal.over}" for goal in work.goals)
            body.append((work.label, work.group, cell(work), goals))
        return table.columns(body)

    def run(self, works: Sequence[R], bench: B, document: dict[str, Any], save: Callable[[], object]) -> bool:
        """Measure rows into ``document``, saving it after each; whether every check passed."""
        document["cases"] = []
        for work in works:
            try:
                case = self.measure(work, bench)
            finally:
                document["not_run"] = [asdict(item) for item in bench.not_run]
                save()
            document["cases"].append(case)
            save()
            print(self.case_table(case), flush=True)
            if bench.device == "cuda":
                torch.cuda.empty_cache()
        return all(item["passed"] for case in document["cases"] for item in case["checks"])

    def run_apart(
        self, works: Sequence[R], options: argparse.Namespace, document: dict[str, Any], save: Callable[[], object]
    ) -> bool:
        """As :meth:`run`, each row in a process of its own, whose results are added to ``document``."""
        document["cases"], document["not_run"], passed = [], [], True
        for work in works:
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, "-m", "bench", self.name, "--groups", work.group, "--exactly", work.label]
                command += ["--repeats", str(options.repeats), "--out", folder, "--peers", *options.peers]
                done = subprocess.run(
                    command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
                )
                found = [results.load(path) for path in Path(folder).glob("*.json")]
            rows = [case for one in found for case in one.get("cases", ())]
            if not rows:
                print(f"{work.label}: exit status {done.returncode}\n{done.stderr[-2000:]}", file=sys.stderr)
                passed = False
            document["cases"] += rows
            document["not_run"] += [item for one in found for item in one.get("not_run", ())]
            save()
            passed &= done.returncode == 0
            for case in rows:
                print(self.case_table(case), flush=True)
        return passed

    def main(self, arguments: Sequence[str]) -> int:
        """Measure, print, and write JSON and PNG. Exit status 1 if an output was wrong or there is no GPU."""
        options = self.parser().parse_args(arguments)
        try:
            works = self.chosen(options)
        except (OSError, ValueError) as error:
            self.parser().error(str(error))
        if not works:
            self.parser().error("--groups and --only: expected to leave a row (see --list)")
        if options.list:
            print(self.listing(works))
            return 0
        if not torch.cuda.is_available():
            print(f"bench {self.name}: expected an NVIDIA GPU (torch sees none)", file=sys.stderr)
            return 1
        document = results.new_document(self.name, arguments)
        name, before = torch.cuda.get_device_name(), machine.gpu_state()
        document |= {"gpu": name, "commit": machine.commit(), "versions": machine.versions(), "before": before}
        path = results.place(options.out, document, name)
        print(f"{name}; {table.state_line(before)}; commit {document['commit']}", flush=True)

        def save() -> None:
            results.save(document, path)

        if options.apart:
            passed = self.run_apart(works, options, document, save)
        else:
            passed = self.run(works, self.bench(options), document, save)
        document["after"] = machine.gpu_state()
        results.finish(document)
        save()
        print(f"{table.not_run_table(document['not_run'])}\n\n{self.summary(document['cases'])}")
        print("\n".join(["", str(path), *self.beside(document, path)]))
        return 0 if passed else 1

    def beside(self, document: dict[str, Any], path: Path) -> Sequence[str]:
        """Write what goes beside the result file at ``path``; a line about each."""
        return [plot.draw(document, path.with_suffix(".png"))]
