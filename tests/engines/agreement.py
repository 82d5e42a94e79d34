"""How far two engines write the same: for the scripts that are run on a GPU, which import nothing heavier here."""

from __future__ import annotations

from typing import Any


def agreement(made: list[Any], wanted: list[Any], margin: float = 0.15) -> dict[str, Any]:
    """Steps that agree, and whether the first that does not lay within a margin (nats) of the next best token."""
    steps, fine = [], True
    for one, other in zip(made, wanted, strict=True):
        pairs = list(zip(one["tokens"], other["tokens"], other["best"], strict=True))
        step = next((index for index, (got, want, _) in enumerate(pairs) if got != want), len(pairs))
        steps.append(step)
        fine &= step == len(pairs) or pairs[step][2][0] - pairs[step][2][1] < margin
    return {"steps": steps, "of": len(made[0]["tokens"]), "fine": fine}
