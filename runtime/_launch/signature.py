"""Ties a call object to a prepared launch: what it looked like when it was validated, and whether it still does.

This runs in every launch, so fields are fetched in one go by ``attrgetter`` rather than one by one.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch

from .._call.arguments import OPTIONS, SIZES, TENSORS
from ..params import UNLIMITED, Params
from .prepared import Prepared

_OPTIONS, _SIZES, _TENSORS = attrgetter(*OPTIONS), attrgetter(*SIZES), attrgetter(*TENSORS)


class Scan:
    """One pass over a call: its form, its signature, and its tensors with their addresses.

    ``form`` holds everything that :func:`check_form` looks at: options, and for each tensor type, device and rank.
    ``signature`` holds all that validation, dispatch and the plan look at, which adds shapes, strides and the hints
    about lengths; neither holds addresses, device values or the value of a threshold.

    Numbers are keys together with their types: ``True`` equals 1, and is no number of keys.

    Raises:
        AttributeError: q, k, v or an optional tensor is not a tensor; validation says which.
        RuntimeError: a tensor has no memory of its own (it is sparse, for one); validation says which.
    """

    __slots__ = ("addresses", "form", "looks", "signature")

    def __init__(self, params: Params) -> None:
        """Looks at every field of ``params`` once."""
        looks: list[tuple[torch.Tensor, int, tuple[int, ...], tuple[int, ...]]] = []
        addresses: dict[str, int] = {}
        options, lengths = _OPTIONS(params), _SIZES(params)
        form: list[Any] = [*options, *map(type, options)]
        if params.window_size is not UNLIMITED:
            form += map(type, params.window_size)
        sizes: list[Any] = [*lengths, *map(type, lengths)]
        for name, value in zip(TENSORS, _TENSORS(params), strict=True):
            if value is None:
                continue
            if name == "skip_softmax_threshold" and not isinstance(value, torch.Tensor):
                form.append("threshold on the host")
                continue
            address, shape, strides = value.data_ptr(), value.shape, value.stride()
            form += (name, value.dtype, value.device, len(shape))
            sizes += (shape, strides)
            looks.append((value, address, shape, strides))
            addresses[name] = address
        self.form = tuple(form)
        self.signature = (self.form, *sizes)
        self.looks, self.addresses = looks, addresses

    def needs_gradient(self) -> bool:
        """Whether a tensor of the call requires a gradient, and gradients are recorded."""
        if torch.is_grad_enabled():
            for look in self.looks:
                if look[0].requires_grad:
                    return True
        return False


class Bound:
    """A validated call and the prepared launch that runs it."""

    __slots__ = ("_looks", "addresses", "prepared", "threshold", "token")

    def __init__(self, scan: Scan, prepared: Prepared, token: object, threshold: float) -> None:
        """Holds the tensors of the call, not the call, which holds this."""
        self._looks, self.addresses = scan.looks, scan.addresses
        self.prepared, self.token, self.threshold = prepared, token, threshold

    def holds(self) -> bool:
        """Whether no tensor was moved, resized or made to require a gradient since."""
        gradients = torch.is_grad_enabled()
        for tensor, address, shape, strides in self._looks:
            if tensor.data_ptr() != address or tensor.shape != shape or tensor.stride() != strides:
                return False
            if gradients and tensor.requires_grad:
                return False
        return True
