"""Ties a call object to a prepared launch: what it looked like when it was validated, and whether it still does.

This runs in every launch, so it spells out what a loop over field names would do more slowly.
"""

from __future__ import annotations

from typing import Any

import torch

from .call import Params
from .prepared import Prepared

Form = tuple[torch.Tensor, int, tuple[int, ...], tuple[int, ...]]  # tensor, address, shape, strides


class Scan:
    """One pass over a call: the key of its kind, and its tensors with their addresses.

    ``key`` holds everything that validation, dispatch and the plan look at, except addresses and device values.
    ``given`` says whether the caller gave outputs or a custom mask, whose addresses need more checks than alignment.

    Raises:
        AttributeError: q, k, v or an optional tensor is not a tensor; validation says which.
    """

    __slots__ = ("addresses", "forms", "given", "key")

    def __init__(self, params: Params) -> None:
        """Looks at every field of ``params`` once."""
        forms: list[Form] = []
        addresses: dict[str, int] = {}
        key: list[Any] = [
            params.kv_layout,
            params.max_seqlen_q,
            params.max_seqlen_k,
            params.mask,
            params.window_size,
            params.chunk_size,
            params.softmax_scale,
            params.softcap,
            params.return_lse,
        ]
        threshold = params.skip_softmax_threshold
        if not isinstance(threshold, torch.Tensor):
            key.append(threshold)
            threshold = None
        self.given = params.custom_mask is not None
        for name, tensor in (
            ("q", params.q),
            ("k", params.k),
            ("v", params.v),
            ("page_table", params.page_table),
            ("cu_seqlens_q", params.cu_seqlens_q),
            ("cu_seqlens_k", params.cu_seqlens_k),
            ("seqused_k", params.seqused_k),
            ("custom_mask", params.custom_mask),
            ("alibi_slopes", params.alibi_slopes),
            ("sinks", params.sinks),
            ("skip_softmax_threshold", threshold),
        ):
            if tensor is not None:
                _add(name, tensor, key, forms, addresses)
        for name, tensor in (
            ("out", params.out),
            ("lse", params.lse),
            ("stats", params.stats),
            ("skip_map", params.skip_map),
        ):
            if tensor is not None:
                self.given = True
                _add(name, tensor, key, forms, addresses)
        self.key, self.forms, self.addresses = tuple(key), forms, addresses


def _add(name: str, tensor: torch.Tensor, key: list[Any], forms: list[Form], addresses: dict[str, int]) -> None:
    address, shape, strides = tensor.data_ptr(), tensor.shape, tensor.stride()
    key += (name, tensor.dtype, tensor.device, shape, strides)
    forms.append((tensor, address, shape, strides))
    addresses[name] = address


class Bound:
    """A validated call and the prepared launch that runs it."""

    __slots__ = ("_forms", "addresses", "prepared")

    def __init__(self, scan: Scan, prepared: Prepared) -> None:
        """Holds the tensors of the call, not the call, which holds this."""
        self._forms, self.addresses, self.prepared = scan.forms, scan.addresses, prepared

    def holds(self) -> bool:
        """Whether no tensor was moved, resized or made to require a gradient since."""
        for tensor, address, shape, strides in self._forms:
            if tensor.data_ptr() != address or tensor.shape != shape or tensor.stride() != strides:
                return False
        return not (torch.is_grad_enabled() and self.needs_gradient())

    def needs_gradient(self) -> bool:
        """Whether a tensor of the call requires a gradient."""
        return any(form[0].requires_grad for form in self._forms)
