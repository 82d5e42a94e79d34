"""Thresholds of the skip rule from a scale factor, as calibrations give them."""

from __future__ import annotations

import math
from numbers import Real
from typing import overload

import torch

from ..errors import expected

_FACTOR = "a finite float that is 0 or more"


@overload
def threshold_from_scale_factor(factor: float, len_k: int | float) -> float: ...


@overload
def threshold_from_scale_factor(factor: float | torch.Tensor, len_k: torch.Tensor) -> torch.Tensor: ...


def threshold_from_scale_factor(
    factor: float | torch.Tensor, len_k: int | float | torch.Tensor
) -> float | torch.Tensor:
    """``factor / len_k``, and 0 (dense) where that is 1 or more.

    Args:
        factor: finite, at least 0; with a tensor ``len_k`` also a float tensor that broadcasts against it.
        len_k: keys of the request, or an integer tensor ``[B]`` of them: the result is then a float32 tensor on the
            same device, computed there without a read-back. A length of 0 gives 0.

    Returns:
        What ``skip_softmax_threshold`` takes.
    """
    if not isinstance(factor, torch.Tensor):
        if isinstance(factor, bool) or not isinstance(factor, Real):
            raise expected("factor", _FACTOR, f"{type(factor).__name__} {factor!r}")
        if not (math.isfinite(factor) and factor >= 0):
            raise expected("factor", _FACTOR, factor)
    if isinstance(len_k, torch.Tensor):
        ratio = factor / len_k.to(torch.float32)
        return torch.where((ratio < 1) & (ratio >= 0), ratio, 0.0).to(torch.float32)
    if isinstance(factor, torch.Tensor):
        raise expected("len_k", "a tensor, since factor is one", type(len_k).__name__)
    if isinstance(len_k, bool) or not isinstance(len_k, Real) or not len_k >= 0:
        raise expected("len_k", "a number of keys, 0 or more", repr(len_k))
    ratio_of_one = factor / len_k if len_k > 0 else math.inf
    return float(ratio_of_one) if ratio_of_one < 1 else 0.0
