"""Ties a call object to a prepared launch: what it looked like when it was validated, and whether it still does.

This runs in every launch, so fields are fetched in one go by ``attrgetter`` rather than one by one.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch

from ..params import Params
from .prepared import Prepared

_OPTIONS = attrgetter(
    "kv_layout",
    "max_seqlen_q",
    "max_seqlen_k",
    "mask",
    "window_size",
    "chunk_size",
    "softmax_scale",
    "softcap",
    "return_lse",
)
_NAMES = (
    "q",
    "k",
    "v",
    "page_table",
    "cu_seqlens_q",
    "cu_seqlens_k",
    "seqused_k",
    "alibi_slopes",
    "sinks",
    "q_descale",
    "k_descale",
    "v_descale",
    "skip_softmax_threshold",
    "custom_mask",
    "out",
    "lse",
    "stats",
    "skip_map",
)
_TENSORS = attrgetter(*_NAMES)


class Scan:
    """One pass over a call: the key of its kind, and its tensors with their addresses.

    ``key`` holds everything that validation, dispatch and the plan look at, except addresses and device values.

    Raises:
        AttributeError: q, k, v or an optional tensor is not a tensor; validation says which.
        RuntimeError: a tensor has no memory of its own (it is sparse, for one); validation says which.
    """

    __slots__ = ("addresses", "forms", "key")

    def __init__(self, params: Params) -> None:
        """Looks at every field of ``params`` once."""
        forms: list[tuple[torch.Tensor, int, tuple[int, ...], tuple[int, ...]]] = []
        addresses: dict[str, int] = {}
        key: list[Any] = [*_OPTIONS(params)]
        for name, value in zip(_NAMES, _TENSORS(params), strict=True):
            if value is None:
                continue
            if name == "skip_softmax_threshold" and not isinstance(value, torch.Tensor):
                key.append(value)
                continue
            address, shape, strides = value.data_ptr(), value.shape, value.stride()
            key += (name, value.dtype, value.device, shape, strides)
            forms.append((value, address, shape, strides))
            addresses[name] = address
        self.key, self.forms, self.addresses = tuple(key), forms, addresses


class Bound:
    """A validated call and the prepared launch that runs it."""

    __slots__ = ("_forms", "addresses", "prepared")

    def __init__(self, scan: Scan, prepared: Prepared) -> None:
        """Holds the tensors of the call, not the call, which holds this."""
        self._forms, self.addresses, self.prepared = scan.forms, scan.addresses, prepared

    def holds(self) -> bool:
        """Whether no tensor was moved, resized or made to require a gradient since."""
        gradients = torch.is_grad_enabled()
        for tensor, address, shape, strides in self._forms:
            if tensor.data_ptr() != address or tensor.shape != shape or tensor.stride() != strides:
                return False
            if gradients and tensor.requires_grad:
                return False
        return True

    def needs_gradient(self) -> bool:
        """Whether a tensor of the call requires a gradient, and gradients are recorded."""
        if torch.is_grad_enabled():
            for form in self._forms:
                if form[0].requires_grad:
                    return True
        return False
