"""Linear layers of 16 bits on a CPU without instructions for them: computed in float32 and rounded as before."""

from __future__ import annotations

from types import MethodType

import torch
from torch.nn import functional

_FEWEST = 16  # rows from which on the copy of the weights is worth it


def quicken(model: torch.nn.Module) -> None:
    """Have the linear layers of a model on the CPU multiply in float32: two to three times as fast, or as fast.

    Input, weights and output stay what they are, and sums were kept in float32 before, so that results differ no more
    than by the order of these sums. Nothing is kept: weights are converted in every call that has rows enough.
    """
    for module in model.modules():
        if type(module) is torch.nn.Linear and module.weight.device.type == "cpu" and module.weight.itemsize == 2:
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign]


def _forward(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    if x.shape[:-1].numel() < _FEWEST:
        return functional.linear(x, self.weight, self.bias)
    bias = None if self.bias is None else self.bias.float()
    return functional.linear(x.float(), self.weight.float(), bias).to(x.dtype)
