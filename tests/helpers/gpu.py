"""Which kernels the GPU of this machine runs."""

from __future__ import annotations

from functools import cache

import torch
from skimattn.dispatch import BY_CAPABILITY


@cache
def gpu_arch() -> str:
    """The architecture of torch's current GPU; sm90 without one, where tests of a GPU are collected and skipped."""
    if not torch.cuda.is_available():
        return "sm90"
    return BY_CAPABILITY[torch.cuda.get_device_capability()]
