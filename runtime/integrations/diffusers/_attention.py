"""Attention of one module as a call of skimattn: what its projections gave, its policy, and the lengths of its keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ...api import launch
from ...errors import expected
from ...params import Params
from ...sparse.call import skip_arguments
from ...sparse.policy import LayerPolicy, policy_of

_watched: list[int] | None = None


@contextmanager
def watching_keys() -> Iterator[list[int]]:
    """The most keys of a request, in every call of this context that skips; waits for the device in each."""
    global _watched
    before, seen = _watched, list[int]()
    _watched = seen
    try:
        yield seen
    finally:
        _watched = before


def attend(
    module: torch.nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention of rows to all keys in use, with what the module's policy skips.

    Args:
        module: whose policy holds.
        q: ``[B, S, H, D]``, bf16 or fp16.
        k: likewise.
        v: likewise.
        lengths: int32 ``[B]``, the first rows and keys of each request that are in use; None: all.

    Returns:
        ``[B, S, H, D]``, with zeros in rows that are not in use.

    Raises:
        ArgumentError: kernels do not take it; or nobody said which step comes and some are to be dense.
    """
    arguments: dict[str, Any] = {"q": q, "k": k, "v": v}
    if lengths is not None:
        # Rows of padding would have a say in what their group skips. Later layers read their zeros.
        arguments |= {"seqused_q": lengths, "seqused_k": lengths, "out": torch.zeros_like(q)}
    policy = policy_of(module)
    if policy is not None:
        keys = k.shape[1] if lengths is None else lengths
        arguments |= _skipping(policy, keys, q)
        if _watched is not None and arguments.get("skip_softmax_threshold") is not None:
            _watched.append(keys if isinstance(keys, int) else int(keys.max()))
    out = launch(Params(**arguments))
    assert isinstance(out, torch.Tensor)  # no log-sum-exp was asked for
    return out


def _skipping(policy: LayerPolicy, keys: int | torch.Tensor, q: torch.Tensor) -> dict[str, Any]:
    if policy.awaits_step:
        wanted = "to be told by denoising(pipe) or set_step(transformer, step, timestep), since some are to be dense"
        raise expected("step", wanted, "a forward of which nobody said it")
    return skip_arguments(policy, "prefill", keys, batch=q.shape[0], heads_q=q.shape[2], device=q.device)
