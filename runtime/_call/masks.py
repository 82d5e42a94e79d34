"""Custom masks in the packed form that kernels read."""

from __future__ import annotations

import torch

from ..errors import ArgumentError
from .checks import describe

WORD_BYTES = 4  # the kernel reads custom masks in words of 32 keys


def mask_bytes(keys: int) -> int:
    """Bytes of a packed custom-mask row."""
    return -(-keys // 32) * WORD_BYTES


def pack_mask(mask: torch.Tensor) -> torch.Tensor:
    """Pack a bool mask ``[..., keys]`` into uint8 ``[..., 4 * ceil(keys / 32)]`` on its own device.

    Bit ``j % 8`` of byte ``j // 8`` is column j. Packing once and passing the result saves packing in every launch.
    """
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or mask.dim() < 1:
        got = describe(mask) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise ArgumentError(f"mask: expected a bool tensor [..., keys] (got {got})")
    keys, width = mask.shape[-1], mask_bytes(mask.shape[-1])
    bits = torch.nn.functional.pad(mask, (0, width * 8 - keys)).view(*mask.shape[:-1], width, 8)
    # Note: made on the device. A table copied from the host would wait for it, and could not be captured.
    places = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (bits.to(torch.uint8) << places).sum(-1, dtype=torch.uint8)
