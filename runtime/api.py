"""``launch``; ``attention``, the call in one line with the argument names of flash-attn; and ``merge_states``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.compiler import is_compiling

from . import launcher
from ._op.merge import check_states, states_of
from ._op.ops import traced
from .errors import expected
from .launcher import Result
from .params import UNLIMITED, Params


def launch(params: Params, stream: Any = None) -> Result:
    """Compute attention; asynchronous on a GPU, with the block-exact reference on CPU tensors.

    In code that torch.compile or torch.export traces it becomes an operator (:mod:`skimattn.integrations.torch_ops`).

    Args:
        params: the call; launching the same object again skips validation while its tensors stay where they are.
        stream: where to enqueue: None = torch's current stream of q's device, or a stream, or its handle as an int.

    Returns:
        ``out``, or ``(out, lse)`` with ``return_lse=True``.

    Raises:
        ArgumentError: an argument is not acceptable.
        NoKernelError: no kernel computes this, here.
        BuildError: the kernel had to be compiled and could not be, or its files are damaged.
        CudaError: the driver refused.
    """
    if is_compiling():
        return traced(params, stream)
    return launcher.launch(params, stream)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    window_size: tuple[int, int] = UNLIMITED,
    stream: Any = None,
    **arguments: Any,
) -> Result:
    """Compute attention; :class:`~skimattn.Params` describes the arguments.

    Args:
        q: queries.
        k: keys, or their pages.
        v: values, or their pages.
        causal: the causal mask; with ``window_size=(left, -1)`` or ``(left, 0)`` the sliding causal one.
        window_size: keys to the left and right of the diagonal; anything but ``(-1, -1)`` selects the window mask.
        stream: as in :func:`skimattn.launch`.
        arguments: every other argument of :class:`~skimattn.Params`.

    Returns:
        ``out``, or ``(out, lse)`` with ``return_lse=True``.
    """
    if "mask" not in arguments:
        if window_size != UNLIMITED:
            if causal:
                window_size = _causal_window(window_size)
            arguments["mask"] = "window"
        else:
            arguments["mask"] = "causal" if causal else "full"
    elif causal:
        raise expected("mask", "no mask with causal=True", repr(arguments["mask"]))
    return launch(Params(q, k, v, window_size=window_size, **arguments), stream)


def merge_states(
    outs: torch.Tensor | Sequence[torch.Tensor], lses: torch.Tensor | Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge attention over several sets of keys into attention over all of them.

    What ranks of a context-parallel group computed over their keys each, or calls over a shared prefix and over what
    follows it. Computed in float32, in the order of the states, which is all that the bits depend on. In traced code it
    is an operator, as :func:`launch` is.

    Args:
        outs: n states, as a sequence of tensors ``[..., H, D]`` of one shape, or stacked as ``[n, ..., H, D]``; bf16,
            fp16 or float32.
        lses: their log-sum-exps ``[..., H]``, likewise; float32, natural logarithm, without sinks, as ``return_lse``
            gives them. A state with -inf has seen no key: it weighs nothing, whatever its output holds.

    Returns:
        ``(out, lse)`` as one state has them, in new tensors; where no state has seen a key, 0 and -inf. A sink goes
        into the result: ``out * torch.sigmoid(lse - sinks).unsqueeze(-1)``.

    Raises:
        ArgumentError: an argument is not acceptable.
    """
    states = states_of("outs", outs), states_of("lses", lses)
    check_states(*states)  # without any state torch would not find the operator's kernel
    out, lse = torch.ops.skimattn.merge_states(*states)
    return out, lse


def _causal_window(window_size: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(window_size, tuple) or len(window_size) != 2 or window_size[1] not in (-1, 0):
        raise expected("window_size", "(left, -1) or (left, 0) with causal=True", repr(window_size))
    return window_size[0], 0
