"""``python -m bench statlog``: what a StatLog costs a step, in prefill and in a decode step that a CUDA graph replays.

A stack of layers runs with and without one in turn, over the same weights. Off, layers skip without counting; on, the
kernels count, and after every step the log takes the counters. Time is the host's clock over steps in a row until the
device is done, so what the log does on either is in it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimattn.sparse import StatLog, read_statistics
from torch import nn

from . import goal
from .cases import rounded
from .checks import ROUNDING, Check, relative_error
from .command import Command
from .compare import reached
from .peers import NotRun
from .stack import input_of, stack_of, twin_of
from .statlog_work import OFF, ON, WORKS, Work
from .table import columns, findings, ratio
from .timing import Call, StepTimer, Summary, Timer, graphed, interleave, speed_over

_REPEATS = 20
_STEPS = {"prefill": 3, "decode": 50}  # of a sample


@dataclass
class Bench:
    """What every row of a run shares.

    Args:
        device: of the tensors.
        timer: what measures milliseconds of a step, by how many of them are made in a row.
        repeats: rounds.
        pack: makes one call of a decode step.
        not_run: stays empty: nothing is compared with others.
    """

    device: str
    timer: Callable[[int], Timer]
    repeats: int
    pack: Callable[[Sequence[Call], int], Call] = graphed
    not_run: list[NotRun] = field(default_factory=list)


def measure(work: Work, bench: Bench) -> dict[str, Any]:
    """Time one row and read back what was logged; the result is plain data for the result file."""
    off = stack_of(work, bench.device)
    on, x = twin_of(off), input_of(work, bench.device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stats.jsonl"
        with StatLog(path, on) as log:
            steps = {name: _step(work, bench, stack, x) for name, stack in ((OFF, off), (ON, on))}
            log.step()  # what was launched to prepare the steps
            calls: dict[str, Call] = {OFF: steps[OFF], ON: partial(_logged, work, steps[ON], log)}
            outputs = [on(x), off(x)]
            checks = [Check(ON, OFF, relative_error(*outputs), ROUNDING)]
            log.step()
            times = interleave(calls, bench.repeats, bench.timer(_STEPS[work.phase]))
            calls[ON]()
        checks += _checked(path)
    return {
        "case": work.label,
        **asdict(work),
        "group": work.group,
        "counts": None,
        "rows": [{"name": name, "ms": rounded(Summary.of(samples))} for name, samples in times.items()],
        "comparisons": [{"of": ON, "over": OFF, "speed": rounded(speed_over(times[ON], times[OFF]))}],
        "goals": [reached(item, times) for item in work.goals],
        "checks": [check.plain for check in checks],
    }


def _step(work: Work, bench: Bench, stack: nn.Sequential, x: torch.Tensor) -> Call:
    call = partial(stack, x)
    return bench.pack([call], 1) if work.phase == "decode" else call


def _logged(work: Work, step: Call, log: StatLog) -> None:
    step()
    tokens = work.batch * (work.length if work.phase == "prefill" else 1)
    log.step(requests={work.phase: work.batch}, tokens={work.phase: tokens})


def _checked(path: Path) -> list[Check]:
    """Every step that was timed is there and holds the tiles of one step."""
    found = read_statistics(path)
    visited = np.stack([*found.tiles.values()])[:, 1:, :, 0].sum(0)  # without what was launched to prepare
    wrong = int((visited != visited[0]).any(1).sum()) + int((visited[0] <= 0).any())
    return [Check(ON, "steps with tiles too many or few", wrong, 0), Check(ON, "steps lost", found.lost, 0)]


def case_table(case: dict[str, Any]) -> str:
    """The table of one row. Speeds in parentheses: 10th to 90th percentile over rounds."""
    speeds = {item["of"]: ratio(item["speed"]) for item in case["comparisons"] if item["over"] == OFF}
    body = [("", "ms", "p10-p90", "n", "over off")]
    for row in case["rows"]:
        ms = row["ms"]
        cells = (f"{ms['median']:.4f}", f"{ms['p10']:.4f}-{ms['p90']:.4f}", str(ms["n"]), speeds.get(row["name"], ""))
        body.append((row["name"], *cells))
    goals = [f"goal: {goal.goal_line(item)}" for item in case["goals"]]
    return "\n".join([f"\n== {case['case']}", columns(body), *findings(case), *goals])


def summary(cases: Sequence[dict[str, Any]]) -> str:
    """A line for each row and goal."""
    return goal.summary(cases, ("ms of a step",), lambda case: (f"{case['rows'][0]['ms']['median']:.4f}",))


def _bench(options: argparse.Namespace) -> Bench:
    return Bench("cuda", partial(StepTimer, torch.cuda.synchronize), options.repeats)


COMMAND: Command[Work, Bench] = Command(
    "statlog",
    __doc__,
    WORKS,
    (),
    _REPEATS,
    ("layers", lambda work: str(work.layers)),
    _bench,
    measure,
    case_table,
    summary,
)


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write JSON. Exit status 1 if something was wrong or there is no GPU."""
    return COMMAND.main(arguments)
