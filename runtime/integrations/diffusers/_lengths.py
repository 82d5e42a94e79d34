"""Key lengths from the mask of a joint sequence whose text is padded at its end."""

from __future__ import annotations

import weakref

import torch

from ..._call.checks import describe
from ...errors import expected
from .._device import may_read

_WANTED = "keys in use before those that are not, since lengths are all that a padded text needs"


def key_lengths(mask: torch.Tensor, batch: int, keys: int) -> torch.Tensor | None:
    """Keys in use of each request, int32 ``[B]``; None: all.

    Args:
        mask: bool ``[B, 1, 1, keys]``, True where a key is in use.
        batch: requests.
        keys: of each.

    Raises:
        ArgumentError: it has another form, or keys that are not in use before one that is.
    """
    if mask.dtype != torch.bool or mask.shape != (batch, 1, 1, keys):
        wanted = f"None, or bool [{batch}, 1, 1, {keys}], which hides the same keys from all rows"
        raise expected("attention_mask", wanted, describe(mask))
    used = mask[:, 0, 0]
    lengths = used.sum(1, dtype=torch.int32)
    holes = (used != (torch.arange(keys, device=mask.device) < lengths[:, None])).any(1)
    if not may_read(mask.device):
        torch._assert_async(~holes.any(), f"attention_mask: expected {_WANTED}")
        return lengths
    broken, fewest = torch.stack((holes.sum(), lengths.min())).tolist()
    if broken:
        raise expected("attention_mask", _WANTED, f"{broken} of {batch} requests with others")
    return lengths if fewest < keys else None


class LastMask:
    """The lengths of the mask that was seen last: all layers of a forward are handed the same one."""

    def __init__(self) -> None:
        """None was seen yet."""
        self._seen: tuple[weakref.ref[torch.Tensor], int, torch.Tensor | None] | None = None

    def __reduce__(self) -> tuple[type[LastMask], tuple[()]]:
        """Copies, pickled ones too, have seen none."""
        return LastMask, ()

    def lengths(self, mask: torch.Tensor, batch: int, keys: int) -> torch.Tensor | None:
        """As :func:`key_lengths`."""
        if not may_read(mask.device):
            return key_lengths(mask, batch, keys)
        seen = self._seen
        # A mask of another shape is refused as if it were new.
        if seen is None or seen[0]() is not mask or seen[1] != mask._version or mask.shape[-1] != keys:
            seen = self._seen = weakref.ref(mask), mask._version, key_lengths(mask, batch, keys)
        return seen[2]
