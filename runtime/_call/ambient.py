"""Keeps the surroundings of a call out of what is computed on the CPU for it.

Autocast would round matrix products to 16 bits, a default device would put new tensors elsewhere, and a lower precision
of float32 products would change their bits. A default dtype is met where tensors are made: by naming theirs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_precision_lock = threading.Lock()


@contextmanager
def shielded() -> Iterator[None]:
    """Inside, torch computes on the CPU as it does in a fresh process, without gradients."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.device("cpu"), _full_precision():
        yield


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products of float32 in float32. The setting is the process's, so who finds another one takes turns."""
    if torch.get_float32_matmul_precision() == "highest":
        yield
        return
    with _precision_lock:
        found = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(found)
