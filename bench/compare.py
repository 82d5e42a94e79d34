"""What follows from the times of one row: which peer is the fastest, who is how fast over whom, and the goals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from .cases import rounded
from .goal import Goal
from .names import BEST, DENSE, READ, is_ours
from .timing import Summary, speed_over

Times = Mapping[str, Sequence[float]]


def fastest(times: Times, peer: str) -> str | None:
    """The fastest of a peer's variants, or of all peers; what skips tiles only if ``peer`` is its whole name."""
    peers = [name for name in times if not is_ours(name) and name != READ]
    found = [name for name in peers if name == peer or ("skip" not in name and peer in (BEST, name.partition(" ")[0]))]
    return min(found, key=lambda name: Summary.of(times[name]).median) if found else None


def comparisons(times: Times) -> Iterator[dict[str, object]]:
    """Our dense kernel over everything, all of ours over it and over the best peer, and stat and peers over skip."""
    ours_ = [name for name in times if is_ours(name)]
    best = fastest(times, BEST)
    pairs = [(DENSE, name) for name in times if not is_ours(name)]
    pairs += [(name, over) for name in ours_ if name != DENSE for over in (DENSE, best or DENSE)]
    pairs += [(name, name.replace("stat", "skip")) for name in ours_ if "stat" in name]
    pairs += [(of, over) for of in ours_ for over in times if "skip" in of and "skip" in over and not is_ours(over)]
    for of, over in dict.fromkeys(pairs):
        if of in times and over in times:
            yield {"of": of, "over": over, "speed": rounded(speed_over(times[of], times[over]))}


def reached(goal: Goal, times: Times) -> dict[str, object]:
    """The goal, or the one instead of it if that is nearer, with what was measured (None: one side did not run)."""
    found = []
    for each in (goal, goal.instead):
        if each is not None:
            named = is_ours(each.over) or each.over == READ
            over = each.over if named else fastest(times, each.over)
            ran = each.of in times and over is not None and over in times
            value = round(speed_over(times[each.of], times[over]).median, 4) if ran and over else None
            plain = {"of": each.of, "over": over or each.over, "bar": each.bar, "value": value}
            found.append({**plain, "wanted": goal.over, "passed": value is not None and value >= each.bar})
    return max(found, key=lambda item: (item["value"] or 0.0) / float(item["bar"]))  # type: ignore[arg-type, operator]
