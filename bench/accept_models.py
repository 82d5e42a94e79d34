"""What ``bench models`` must reach: perplexity at two shares, the time that thresholds take, and targets met."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .models_plan import GOALS

MODEL = "smollm2"  # whose prompts of 8k the goals are of
WAY = "with a length term"  # of fits
SECONDS = 300.0  # of one GPU
OFF = 0.03  # of a share, on texts and lengths that no fit has seen
Found = tuple[str, float, float | None, str]  # name, what it may be at most, value, note


def figures(documents: Sequence[dict[str, Any]]) -> Iterator[Found]:
    """Of the model's files, whichever parts they have: the best way to find thresholds counts."""
    cases = [case for one in documents if one.get("model") == MODEL for case in one["cases"] if "failed" not in case]
    curves = [case for case in cases if (case["part"], case["phase"]) == ("curves", "prefill")]
    seconds: list[float | None] = []  # of the fastest way that is within a bar, or of the best one
    for index, (share, bar) in enumerate(GOALS):
        had = [(case["at_goals"][index]["added"], case) for case in curves]
        best = min(((added, case) for added, case in had if added is not None), key=lambda one: one[0], default=None)
        name = f"models, {MODEL}: added perplexity where {share:.0%} of prefill is skipped"
        yield name, bar, best[0] if best else None, best[1]["method"] if best else ""
        within = [case for added, case in had if added is not None and added <= bar] or ([best[1]] if best else [])
        seconds.append(min((case["calibration"]["seconds"] for case in within), default=None))
    known = [one for one in seconds if one is not None]
    yield f"models, {MODEL}: seconds to find these", SECONDS, max(known) if len(known) == len(seconds) else None, ""
    for phase in ("prefill", "decode"):
        fits = (case for case in cases if (case["part"], case["phase"]) == ("lengths", phase))
        off = [case["worst"] for case in fits if case["way"] == WAY]
        worst = max(off) if off and None not in off else None
        yield f"models, {MODEL}: targets of {phase} off by, at most", OFF, worst, ""
