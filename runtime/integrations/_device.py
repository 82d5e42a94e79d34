"""When the host may wait for the device."""

from __future__ import annotations

import torch
from torch.compiler import is_compiling


def may_read(device: torch.device) -> bool:
    """Whether values on the device can be looked at: not in code that is traced, nor while a graph is captured."""
    return not is_compiling() and not (device.type == "cuda" and torch.cuda.is_current_stream_capturing())
