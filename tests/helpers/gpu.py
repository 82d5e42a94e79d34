"""Which kernels the GPU of this machine runs."""

from __future__ import annotations

from functools import cache

import torch
from skimattn._select.dispatch import BY_CAPABILITY


@cache
def gpu_arch() -> str:
    """The architecture of torch's current GPU; sm90 where tests of a GPU are collected and skipped: without a GPU, and
    on one that there are no kernels for.
    """
    if not torch.cuda.is_available():
        return "sm90"
    return BY_CAPABILITY.get(torch.cuda.get_device_capability(), "sm90")
