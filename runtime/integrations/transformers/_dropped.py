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

_NAME = "skimattn_dropped"
_NOTHING = 1e-6  # what LSEs resolve
_PROJECTIONS = ("o_proj", "out_proj", "dense")  # of heads' outputs to the layer's


@dataclass
class Dropped:
    """Sums over rows, by attention module: the share of probability that heads lost, and what that changes.

    ``inputs`` are squares of what comes into the layer, before its norm, and how many rows that were.
    """

    sums: dict[torch.nn.Module, torch.Tensor] = field(default_factory=dict)
    squares: dict[torch.nn.Module, torch.Tensor] = field(default_factory=dict)
    rows: dict[torch.nn.Module, int] = field(default_factory=dict)
    inputs: dict[torch.nn.Module, tuple[torch.Tensor, int]] = field(default_factory=dict)

    def add(self, module: torch.nn.Module, lost: torch.Tensor, change: torch.Tensor) -> None:
        """Add the rows of a call: ``lost [..., Hq]``, and ``change [..., Hq, Dv]`` of the heads' outputs."""
        by_head = lost.double().flatten(0, -2)
        squares = projected_squares(module, change.flatten(0, -3))
        self.sums[module] = self.sums.get(module, 0) + by_head.sum(0)
        self.squares[module] = self.squares.get(module, 0) + squares.double().sum(0)
        self.rows[module] = self.rows.get(module, 0) + len(by_head)

    def see_input(self, module: torch.nn.Module, hidden: torch.Tensor) -> None:
        """Add what comes into the module's layer, ``[..., columns]``."""
        before, rows = self.inputs.get(module, (0.0, 0))
        total = before + hidden.detach().float().square().sum(dtype=torch.float64)
        self.inputs[module] = total, rows + hidden.shape[:-1].numel()

    def means(self, model: torch.nn.Module) -> dict[str, NDArray[np.float64]]:
        """By the name of the layer, of each query head, float64 ``[Hq]``; waits for the device."""
        return self._by_name(model, self.sums)

    def changes(self, model: torch.nn.Module) -> dict[str, NDArray[np.float64]]:
        """Likewise the mean square of what a head's output changes, over that of the layer's input.

        Where the inputs of some layer are not known, as it has none that is a tensor: the mean square alone, of all.
        """
        known = all(module in self.inputs for module in self.squares)
        scale = {module: float(total) / rows for module, (total, rows) in self.inputs.items()} if known else {}
        found = self._by_name(model, self.squares)
        names = {name: module for name, module in model.named_modules() if name in found}
        return {name: values / max(scale.get(names[name], 1.0), 1e-30) for name, values in found.items()}

    def _by_name(
        self, model: torch.nn.Module, sums: dict[torch.nn.Module, torch.Tensor]
    ) -> dict[str, NDArray[np.float64]]:
        return {
            name: (sums[module] / self.rows[module]).cpu().numpy()
            for name, module in model.named_modules()
            if module in sums
        }


def projected_squares(module: torch.nn.Module, change: torch.Tensor) -> torch.Tensor:
    """Squares ``[rows, Hq]`` of changes ``[rows, Hq, Dv]``, each by the columns of its head in the layer's projection.

    A head's part W of the projection makes ``|W x|^2 = x (W^T W) x``, which needs no more memory than x. Where the
    module has no such projection: ``|x|^2``.
    """
    change = change.float()
    heads, columns = change.shape[-2:]
    for name in _PROJECTIONS:
        projection = getattr(module, name, None)
        weight = getattr(projection, "weight", None)
        if isinstance(projection, torch.nn.Linear) and weight is not None and weight.shape[1] == heads * columns:
            by_head = weight.detach().float().view(-1, heads, columns)
            gram = torch.einsum("ohc,ohd->hcd", by_head, by_head)
            return torch.einsum("rhc,hcd,rhd->rh", change, gram, change)
    return change.square().sum(-1)


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
        if isinstance(hidden, torch.Tensor):
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
