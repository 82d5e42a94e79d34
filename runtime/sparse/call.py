"""What a layer's policy adds to a call: integrations say who is computed, and get arguments of ``Params``."""

from __future__ import annotations

from typing import Any

import torch
from torch.compiler import is_compiling

from .policy import LayerPolicy, Phase


def skip_arguments(
    policy: LayerPolicy,
    phase: Phase,
    lengths: int | torch.Tensor,
    *,
    batch: int,
    heads_q: int,
    device: torch.device,
) -> dict[str, Any]:
    """Threshold, and counts where somebody collects them; nothing where the layer is dense.

    Args:
        policy: of the layer.
        phase: the stage of the requests.
        lengths: the keys that a row can see at most, of all requests, or an integer tensor ``[B]``.
        batch: requests.
        heads_q: query heads.
        device: of the call.
    """
    rule = policy.rule(phase)
    if rule is None:
        return {}
    if is_compiling() and not isinstance(lengths, torch.Tensor):
        # a number that changes from step to step would be compiled anew
        lengths = torch.full((batch,), lengths, dtype=torch.int32, device=device)
    threshold = rule.threshold(lengths, device)
    if isinstance(threshold, torch.Tensor):
        threshold = threshold.expand(batch, *threshold.shape[1:]).contiguous()
    arguments: dict[str, Any] = {"skip_softmax_threshold": threshold}
    counts = None if policy.collector is None else policy.collector.counts(phase, batch, heads_q, device)
    return arguments if counts is None else {**arguments, "stats": counts}
