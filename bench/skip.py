"""``python -m bench skip``: what skipping brings at which threshold, in two passes.

The first counts tiles with the stat kernel, which gives the achieved sparsity; the second times the kernel that serves,
interleaved with the dense one on the same inputs. Shapes of LLMs at the published factors of a model, shapes of Wan2.2,
and with ``--real`` what ``bench dump`` took from a model. CSV of both passes, a report, pictures and JSON are written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import machine, results, skip_report
from .command import Command
from .prefill_measure import ROW_MS
from .skip_calls import Bench
from .skip_measure import measure
from .skip_work import WORKS, Work, real_rows
from .timing import CudaTimer

_REPEATS = 10
_MORE = 4  # contenders that a row has, times those of bench rows


@dataclass(frozen=True)
class SkipCommand(Command[Work, Bench]):
    """Rows that files bring, and a report."""

    def parser(self) -> argparse.ArgumentParser:
        """With ``--real``."""
        made = super().parser()
        made.add_argument("--real", nargs="+", type=Path, default=[], metavar="FILE", help="files of bench dump")
        made.add_argument(
            "--report", type=Path, metavar="JSON", help="write CSV, report and pictures of a result again"
        )
        return made

    @property
    def groups(self) -> tuple[str, ...]:
        """Those of the rows, and ``real``."""
        return (*super().groups, "real")

    def all_works(self, options: argparse.Namespace) -> Sequence[Work]:
        """With those of ``--real``."""
        return (*self.works, *real_rows(options.real))

    def beside(self, document: dict[str, Any], path: Path) -> Sequence[str]:
        """CSV of both passes, report and pictures."""
        return skip_report.write(document, path)


def _bench(options: argparse.Namespace) -> Bench:
    row_ms = _MORE * ROW_MS * options.repeats / _REPEATS  # who asks for more rounds gets more of all rows
    return Bench("cuda", CudaTimer(), options.repeats, {}, row_ms, under_load=machine.state_under_load)


COMMAND = SkipCommand(
    "skip",
    __doc__,
    WORKS,
    (),
    _REPEATS,
    ("thresholds", lambda work: str(len(work.points))),
    _bench,
    measure,
    skip_report.case_table,
    skip_report.summary,
)


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write the files. Exit status 1 if something was wrong or there is no GPU."""
    options = COMMAND.parser().parse_args(arguments)
    if options.report is None:
        return COMMAND.main(arguments)
    try:
        document = results.load(options.report)
    except (OSError, ValueError) as error:
        print(f"bench skip: {error}", file=sys.stderr)
        return 1
    print("\n".join(skip_report.write(document, options.report)))
    return 0
