"""A row of ``bench serve``: every server answers the same requests in turn; what comes of their times."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from .serve_plan import DENSE, METRICS, NO_SLOWER, OF_ALLOWED, PEER, Contender, Group, Row, allowed
from .serve_profile import attention_ms
from .serve_servers import SETTLED, environment, milliseconds, shares_of, tiles_between
from .timing import Summary, percentile, round_order, speed_over

Case = dict[str, Any]
Samples = dict[str, dict[str, list[list[float]]]]  # by contender and metric: milliseconds of each round's requests
_STEPS = 8  # that are profiled
PHASE_OF = {"ttft": "prefill", "tpot": "decode"}


class Answers(Protocol):
    """What sends requests: :class:`bench.serve_servers.Client`."""

    def run(self, server: Any, tokenizer: Path, requests: Path, count: int, concurrency: int) -> dict[str, Any]:
        """What the client measured."""
        ...


def rounds(
    row: Row, servers: Sequence[Any], client: Answers, model: Path, requests: Path, settled: float = SETTLED
) -> tuple[Samples, Case]:
    """All rounds of a row, in which servers take turns; times by contender, and tiles of each.

    Those of the round of warm-up count too: it has the same requests, and waiting for its tiles would take longer.
    """
    by_name = {server.contender.name: server for server in servers}
    samples: Samples = {name: {metric: [] for metric in METRICS} for name in by_name}
    before = {name: server.tiles() for name, server in by_name.items()}
    for index in range(-1, row.rounds):  # the first is not kept
        for name in round_order(list(by_name), max(index, 0)):
            found = milliseconds(client.run(by_name[name], model, requests, row.requests, row.concurrency))
            if index >= 0:
                for metric in METRICS:
                    samples[name][metric].append(found[metric])
    time.sleep(settled)
    tiles = {name: tiles_between(before[name], server.tiles()) for name, server in by_name.items()}
    return samples, tiles


def summarised(samples: Iterable[float]) -> dict[str, float]:
    """A summary with the 99th percentile."""
    ordered = sorted(samples)
    return {**asdict(Summary.of(ordered)), "p99": percentile(ordered, 99)}


def speeds(samples: Samples, of: str, over: str, metric: str) -> dict[str, float]:
    """How much faster one is than another, from medians of the same round."""
    mine, other = ([Summary.of(values).median for values in samples[name][metric]] for name in (of, over))
    return asdict(speed_over(mine, other))


def case_of(row: Row, samples: Samples, tiles: Mapping[str, Any], apart: bool, attention: Mapping[str, Any]) -> Case:
    """A row's result.

    Args:
        row: it.
        samples: of all contenders.
        tiles: visited and skipped ones by contender and phase.
        apart: whether servers did not run at the same time, so that rounds are no pairs.
        attention: by contender, milliseconds of its kernels in a prompt and in a step; empty: not looked at.
    """
    rows = [
        {
            "name": name,
            "tiles": tiles[name],
            "sparsity": shares_of(tiles[name]),
            **{metric: summarised(value for some in of[metric] for value in some) for metric in METRICS},
            "attention_ms": attention.get(name),
        }
        for name, of in samples.items()
    ]
    pairs = [(name, over) for name in samples for over in (PEER, DENSE) if over in samples and name not in (PEER, over)]
    comparisons = [
        {"of": of, "over": over, "metric": metric, "speed": speeds(samples, of, over, metric)}
        for of, over in pairs
        for metric in METRICS
    ]
    case: Case = {"case": row.label, **asdict(row), "apart": apart, "rows": rows, "comparisons": comparisons}
    case["goals"] = [*_no_slower(case), *_of_allowed(case)]
    return case


def _speed(case: Case, of: str, over: str, metric: str) -> float | None:
    wanted = (of, over, metric)
    found = (one["speed"] for one in case["comparisons"] if (one["of"], one["over"], one["metric"]) == wanted)
    return next((float(one["median"]) for one in found), None)


def _goal(of: str, over: str, bar: float, value: float | None) -> Case:
    return {"of": of, "over": over, "bar": bar, "value": value, "passed": value is not None and value >= bar}


def _no_slower(case: Case) -> list[Case]:
    """Without skipping, as fast as the peer."""
    if not any(row["name"] == DENSE for row in case["rows"]):
        return []
    return [_goal(f"{DENSE} {metric}", PEER, NO_SLOWER, _speed(case, DENSE, PEER, metric)) for metric in METRICS]


def _of_allowed(case: Case) -> list[Case]:
    """With skipping, as fast as the attention's share of the time and its kernels' speedup allow.

    The metric is what attention makes long: the first token where requests come one by one, else steps.
    """
    found = {row["name"]: row for row in case["rows"]}
    metric = "ttft" if case["concurrency"] == 1 else "tpot"
    phase = PHASE_OF[metric]
    dense = (found.get(DENSE, {}).get("attention_ms") or {}).get(phase)
    made = []
    for name, row in found.items():
        mine = (row["attention_ms"] or {}).get(phase)
        if name in (PEER, DENSE) or not dense or not mine:
            continue
        share = min(1.0, dense / found[DENSE][metric]["median"])
        bound = allowed(share, dense / mine)
        speed = _speed(case, name, DENSE, metric)
        row["allowed"] = {"metric": metric, "share": share, "speedup": dense / mine, "speed": bound}
        made.append(_goal(f"{name} {metric}", f"{bound:.3f} allowed", OF_ALLOWED, speed and speed / bound))
    return made


def attention_of(
    row: Row,
    group: Group,
    contender: Contender,
    model: Path,
    requests: Path,
    folder: Path,
    device: str,
    plugin: str | None,
) -> Case:
    """Milliseconds of our kernels in a prompt and in a step, from an engine of its own under torch's profiler.

    Raises:
        OSError: it fails; the text ends with what it said.
    """
    job = {
        "model": str(model),
        "config": contender.config,
        "requests": str(requests),
        "steps": min(_STEPS, row.new_tokens - 1),
    }
    job |= {"concurrency": row.concurrency, "cache_gb": group.cache_gb, "longest": group.longest, "device": device}
    asked, out = folder / "profile.json", folder / "profiled.json"
    asked.write_text(json.dumps(job))
    variables = environment(True, device, plugin) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    command = [sys.executable, "-m", "bench.serve_profile", str(asked), str(out)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"profile of {contender.name}: {done.stderr[-3000:]}")
    kernels = json.loads(out.read_text())
    return {phase: attention_ms(kernels[phase], phase) for phase in ("prefill", "decode")}
