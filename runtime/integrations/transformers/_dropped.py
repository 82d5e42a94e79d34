"""Attention that also tells what was dropped: calls that skip are computed densely too, and both are compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from ...api import launch
from ...sparse.modules import attention_modules
from ...sparse.stats import dropped_from_lse
from ._attention import as_transformers_has_it, params_of
from ._register import computed_by

Floats = NDArray[np.float64]
_NAME = "skimattn_dropped"
_NOTHING = 1e-6  # what LSEs resolve
_PROJECTIONS = ("o_proj", "out_proj", "dense")  # of heads' outputs to the layer's
_READABLE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass
class Dropped:
    """Sums over rows, by attention module: the share of probability that heads lost, and what that changes.

    ``ratios`` are ``squares`` over the square of the row that comes into the layer, before its norm: each row by its
    own, since a few tokens of many models are a thousand times as large as all others.
    """

    sums: dict[torch.nn.Module, torch.Tensor] = field(default_factory=dict)
    squares: dict[torch.nn.Module, torch.Tensor] = field(default_factory=dict)
    ratios: dict[torch.nn.Module, torch.Tensor] = field(default_factory=dict)
    rows: dict[torch.nn.Module, int] = field(default_factory=dict)
    _inputs: dict[torch.nn.Module, torch.Tensor] = field(default_factory=dict)
    _grams: dict[torch.nn.Module, torch.Tensor | None] = field(default_factory=dict)

    def add(self, module: torch.nn.Module, lost: torch.Tensor, change: torch.Tensor) -> None:
        """Add the rows of a call: ``lost [..., Hq]``, and ``change [..., Hq, Dv]`` of the heads' outputs."""
        by_head, flat = lost.double().flatten(0, -2), change.float().flatten(0, -3)
        if module not in self._grams:
            self._grams[module] = gram_of(module, *flat.shape[-2:])
        squares = squares_of(flat, self._grams[module])
        self._sum(self.sums, module, by_head)
        self._sum(self.squares, module, squares)
        self.rows[module] = self.rows.get(module, 0) + len(by_head)
        inputs = self._inputs.pop(module, None)
        if inputs is not None and len(inputs) == len(squares):
            self._sum(self.ratios, module, squares / inputs.clamp(min=1e-30)[:, None])

    def see_input(self, module: torch.nn.Module, hidden: torch.Tensor) -> None:
        """What comes into the module's layer next, ``[..., columns]``."""
        self._inputs[module] = hidden.detach().float().square().sum(-1).flatten()

    @staticmethod
    def told(found: Dropped | None, model: torch.nn.Module) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """:meth:`means` and :meth:`changes`; nothing where nothing was measured."""
        return ({}, {}) if found is None else (found.means(model), found.changes(model))

    def means(self, model: torch.nn.Module) -> dict[str, Floats]:
        """By the name of the layer, of each query head, float64 ``[Hq]``; waits for the device."""
        return self._by_name(model, self.sums)

    def changes(self, model: torch.nn.Module) -> dict[str, Floats]:
        """Likewise the mean square of what a head's output changes, over that of the layer's input.

        Where the inputs of some layer are not known, as it has none that is a tensor: the square alone, of all layers.
        """
        known = all(module in self.ratios for module in self.squares)
        return self._by_name(model, self.ratios if known else self.squares)

    @staticmethod
    def _sum(sums: dict[torch.nn.Module, torch.Tensor], module: torch.nn.Module, values: torch.Tensor) -> None:
        sums[module] = sums.get(module, 0) + values.double().sum(0)

    def _by_name(self, model: torch.nn.Module, sums: dict[torch.nn.Module, torch.Tensor]) -> dict[str, Floats]:
        return {
            name: (sums[module] / max(self.rows[module], 1)).cpu().numpy()
            for name, module in model.named_modules()
            if module in sums
        }


def gram_of(module: torch.nn.Module, heads: int, columns: int) -> torch.Tensor | None:
    """``W^T W`` of each head's part W of the layer's projection, float32 ``[Hq, Dv, Dv]``: ``|W x|^2 = x (W^T W) x``.

    None where the module has no projection whose weights can be read: packed and 8-bit ones have scales elsewhere.
    """
    for name in _PROJECTIONS:
        projection = getattr(module, name, None)
        weight = getattr(projection, "weight", None)
        if not isinstance(projection, torch.nn.Linear) or weight is None or weight.dtype not in _READABLE:
            continue
        if weight.dim() == 2 and weight.shape[1] == heads * columns:
            by_head = weight.detach().float().view(-1, heads, columns)
            return torch.einsum("ohc,ohd->hcd", by_head, by_head)
    return None


def squares_of(change: torch.Tensor, gram: torch.Tensor | None) -> torch.Tensor:
    """Squares ``[rows, Hq]`` of changes ``[rows, Hq, Dv]``, projected if there is a gram matrix."""
    if gram is None:
        return change.square().sum(-1)
    return torch.einsum("rhc,hcd,rhd->rh", change, gram, change)


_measured = Dropped()


@contextmanager
def measuring(model: transformers.PreTrainedModel) -> Iterator[Dropped]:
    """Calls of the model in this context are measured; one model at a time, since attention functions have no state."""
    global _measured
    _measured = found = Dropped()
    with ExitStack() as stack:
        for name, module in attention_modules(model).items():
            layer = model.get_submodule(name.rpartition(".")[0])
            hook = layer.register_forward_pre_hook(_seen_by(found, module), with_kwargs=True)
            stack.callback(hook.remove)
        stack.enter_context(computed_by(model, _NAME, _attention))
        yield found


def _seen_by(found: Dropped, module: torch.nn.Module) -> Any:
    def see(layer: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        del layer
        hidden = arguments[0] if arguments else named.get("hidden_states")
        if isinstance(hidden, torch.Tensor) and hidden.is_floating_point():
            found.see_input(module, hidden)

    return see


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """As ``attention``, of requests whose rows are all in use."""
    params = params_of(module, query, key, value, attention_mask, **arguments)
    if params.skip_softmax_threshold is None:
        out = launch(params)
        assert isinstance(out, torch.Tensor)
        return as_transformers_has_it(out, query, value), None
    out, kept = launch(replace(params, return_lse=True))
    whole, dense = launch(replace(params, return_lse=True, skip_softmax_threshold=None, stats=None, out=None))
    given, wanted = (as_transformers_has_it(one, query, value) for one in (out, whole))
    lost = dropped_from_lse(kept, dense, params.sinks)
    # Of a row that lost nothing two kernels may round differently.
    _measured.add(module, lost, (given - wanted) * (lost > _NOTHING).view(*given.shape[:-1], 1))
    return given, None
