"""One measured case: inputs, contenders, checks, interleaved times, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import skimattn
import torch

from .checks import Check, check_counts, check_outputs
from .contender import Contender, kernel_of, ours
from .inputs import Inputs, normal, planted, tile_counts
from .names import DENSE, is_ours, skip_name, stat_name
from .peers import Maker, NotRun, reason_of
from .shape import Shape
from .timing import Summary, Timer, interleave, speed_over


@dataclass(frozen=True)
class Case:
    """``sparsity`` None: N(0,1) inputs; else planted. ``thresholds`` of our skip kernel; the last is the peers' too."""

    shape: Shape
    sparsity: float | None
    thresholds: tuple[float, ...]

    @property
    def label(self) -> str:
        """Names the case in tables and results."""
        kind = "N(0,1)" if self.sparsity is None else f"planted {self.sparsity:g}"
        return f"{self.shape.label}, {kind}"


@dataclass
class Session:
    """What every case of a run shares.

    Args:
        device: of the tensors.
        timer: measures rounds in milliseconds.
        repeats: rounds per sequence length.
        makers: the peers that are there.
        under_load: runs a call for a while and says what the device's clocks and power are meanwhile.
        not_run: is added to.
    """

    device: str
    timer: Timer
    repeats: Callable[[int], int]
    makers: Mapping[str, Maker]
    under_load: Callable[[Callable[[], object], float], dict[str, object]]
    not_run: list[NotRun] = field(default_factory=list)


def run_case(case: Case, session: Session) -> dict[str, Any]:
    """Measure one case; the result is plain data for the result file."""
    inputs = _inputs(case, session.device)
    contenders = {item.name: item for item in ours(inputs, case.shape, case.thresholds)}
    contenders |= _peers(case, inputs, session)
    outputs = _outputs(case, contenders, session)
    found = {name: kernel_of(item.params) for name, item in contenders.items() if item.params is not None}
    counts, checks = _count(case, contenders, inputs)
    checks += check_outputs(outputs, inputs, case.shape)
    del outputs
    calls = {name: item.call for name, item in contenders.items()}
    times = interleave(calls, session.repeats(case.shape.seqlen), session.timer)
    rows = [_row(name, samples, case.shape) for name, samples in times.items()]
    comparisons = [
        {"of": of, "over": over, "speed": rounded(speed_over(times[of], times[over]))} for of, over in _pairs(times)
    ]
    return {
        "case": case.label,
        "input": "normal" if case.sparsity is None else "planted",
        "planted": case.sparsity,
        **asdict(case.shape),
        "flops": case.shape.flops,
        "kernels": found,
        "counts": counts,
        "rows": rows,
        "comparisons": comparisons,
        "checks": [check.plain for check in checks],
        "under_load": session.under_load(calls[DENSE], Summary.of(times[DENSE]).median),
    }


def _inputs(case: Case, device: str) -> Inputs:
    if case.sparsity is None:
        return normal(case.shape, device)
    return planted(case.shape, case.sparsity, device)


def _peers(case: Case, inputs: Inputs, session: Session) -> dict[str, Contender]:
    made: dict[str, Contender] = {}
    for name, make in session.makers.items():
        try:
            made |= {item.name: item for item in make(inputs, case.shape, (case.thresholds or (None,))[-1])}
        except Exception as error:  # a peer that refuses the case must not end the run
            session.not_run.append(NotRun(name, case.label, reason_of(error)))
    return made


def _outputs(case: Case, contenders: dict[str, Contender], session: Session) -> dict[str, torch.Tensor]:
    """One output of each contender, its buffer full of NaN before. A peer that fails is taken out of ``contenders``."""
    outputs = {}
    for name, item in list(contenders.items()):
        if item.poison is not None:
            item.poison()
        try:
            outputs[name] = item.call()
            if outputs[name].is_cuda:
                torch.cuda.synchronize()
        except Exception as error:
            if is_ours(name):
                raise
            del contenders[name]
            session.not_run.append(NotRun(name, case.label, reason_of(error)))
    return outputs


def _count(
    case: Case, contenders: Mapping[str, Contender], inputs: Inputs
) -> tuple[dict[str, object] | None, list[Check]]:
    """Of the stat kernel's first launch."""
    if not case.thresholds:
        return None, []
    name = stat_name(case.thresholds[-1])
    params = contenders[name].params
    assert params is not None
    return counts_of(name, params, inputs, case.shape)


def counts_of(
    name: str, params: skimattn.Params, inputs: Inputs, shape: Shape
) -> tuple[dict[str, object], list[Check]]:
    """The raw counts after one launch of a stat kernel, and whether they are those that were planted."""
    assert params.stats is not None
    visited, skipped = (int(count) for count in params.stats.tolist())
    kernel: dict[str, Any] = kernel_of(params)
    if kernel["order"] != "sink_first":
        raise ValueError(f"order: expected sink_first, on which planted counts rest (got {kernel['order']})")
    expected = tile_counts(inputs, shape, kernel["tile"][1], kernel["group_rows"])
    sparsity = round(skipped / max(visited, 1), 4)
    return {"visited": visited, "skipped": skipped, "sparsity": sparsity}, check_counts(
        name, (visited, skipped), expected
    )


def _row(name: str, samples: Sequence[float], shape: Shape) -> dict[str, object]:
    milliseconds = Summary.of(samples)
    tflops = shape.flops / milliseconds.median / 1e9
    return {"name": name, "ms": rounded(milliseconds), "tflops": round(tflops, 1)}


def _pairs(names: Mapping[str, object]) -> list[tuple[str, str]]:
    """What is compared: (of, over), the speed of the one over that of the other."""
    peers = [name for name in names if not is_ours(name)]
    dense_peers = [name for name in peers if "skip" not in name]
    pairs = [(DENSE, peer) for peer in dense_peers]
    pairs += [(name, DENSE) for name in names if is_ours(name) and name != DENSE]
    for name in names:
        threshold = name.partition("@")[2]
        if name == stat_name(float(threshold or 0)):
            skip = skip_name(float(threshold))
            pairs += [(name, skip), *((skip, peer) for peer in peers)]
    pairs += [(peer, peer.partition(" ")[0]) for peer in peers if peer not in dense_peers]
    return [pair for pair in pairs if pair[0] in names and pair[1] in names]


def rounded(summary: Summary) -> dict[str, float]:
    """A summary for a result file, four decimals."""
    return {name: round(value, 4) for name, value in asdict(summary).items()}
