"""New tensors on a GPU, without most of what torch's own functions do before they allocate."""

from __future__ import annotations

from collections.abc import Callable

import torch

# Classes whose functions return tensors of class torch.Tensor, as :func:`empty` does. What others return, they decide.
PLAIN: frozenset[type] = frozenset((torch.Tensor, torch.nn.Parameter))

_Sizes = tuple[int, ...]
_here: Callable[[], int] | None = getattr(torch._C, "_cuda_getDevice", None)
# For torch's current device; what compiled code of torch.compile calls. It takes a third of torch.empty_strided's time.
_empty_here: Callable[[_Sizes, _Sizes, torch.dtype], torch.Tensor] | None = getattr(
    torch._C._dynamo.guards, "_empty_strided_cuda", None
)


def empty(sizes: _Sizes, strides: _Sizes, dtype: torch.dtype, ordinal: int) -> torch.Tensor:
    """A tensor that is not initialised, allocated on torch's current stream of the device with index ``ordinal``."""
    if _here is not None and _empty_here is not None and _here() == ordinal:
        return _empty_here(sizes, strides, dtype)
    return torch.empty_strided(sizes, strides, dtype=dtype, device=torch.device("cuda", ordinal))
