"""Keeps the surroundings of a call out of what is computed on the CPU for it.

Autocast would round matrix products to 16 bits, a default device would put new tensors elsewhere, a lower precision of
float32 products would change their bits, and tensors made in inference mode could not be written outside of it, which
kernels can. A default dtype is met where tensors are made: by naming theirs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Note: torch.get_float32_matmul_precision raises where any backend was set on its own, so it is only for torch 2.8.
_matmul: Any = getattr(torch.backends.mkldnn, "matmul", None)
_FULL, _INHERITED = ("highest", "") if _matmul is None else ("ieee", "none")
_precision_lock = threading.Lock()
_inside = 0  # threads that compute in full precision
_found = _FULL  # by the first of them


@contextmanager
def shielded() -> Iterator[None]:
    """Inside, torch computes on the CPU as it does in a fresh process, without gradients."""
    with torch.inference_mode(), torch.autocast("cpu", enabled=False), torch.device("cpu"), _full_precision():
        yield


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products of float32 in float32. The setting is the process's: the last thread to leave puts it back."""
    global _inside, _found
    with _precision_lock:
        if not _inside:
            _found = _precision()
            if _found not in (_FULL, _INHERITED):
                _set_precision(_FULL)
        _inside += 1
    try:
        yield
    finally:
        with _precision_lock:
            _inside -= 1
            if not _inside and _found not in (_FULL, _INHERITED):
                _put_back(_found)


def _precision() -> str:
    return torch.get_float32_matmul_precision() if _matmul is None else str(_matmul.fp32_precision)


def _set_precision(name: str) -> None:
    if _matmul is None:
        torch.set_float32_matmul_precision(name)
    else:
        _matmul.fp32_precision = name


def _put_back(found: str) -> None:
    if _INHERITED:  # from torch.backends.fp32_precision, so that it goes on following that
        _set_precision(_INHERITED)
    if _precision() != found:
        _set_precision(found)
