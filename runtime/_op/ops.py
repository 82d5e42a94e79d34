"""``torch.ops.skimattn``: a call as an operator, which torch.compile, torch.export and FakeTensorMode can see through.

``attention`` makes its outputs, ``attention_out`` is given them; both add to ``stats`` and mark ``skip_map``. They
compute what :func:`skimattn.launch` does and refuse what it refuses. There is no backward pass, and no vmap.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.library import define, register_fake, register_kernel

from .._call.arguments import OUTPUTS
from .._call.checks import require_tensor
from .._call.dtypes import default_out_dtype
from .._call.latent import columns_of_values
from ..errors import expected
from ..launcher import Result, launch
from ..params import Params
from . import schema

_DEVICES = ("cpu", "cuda")
# Kernels read and write through the strides that the call has, so no compiler may choose others.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)


def _attention(*args: torch.Tensor, **arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    params = schema.params_of(*args, **arguments)
    result = launch(params)
    _count_writes(params)
    if isinstance(result, tuple):
        return result
    return result, params.q.new_empty(0, dtype=torch.float32)


def _attention_out(*args: torch.Tensor, **arguments: Any) -> None:
    params = schema.params_of(*args, **arguments)
    launch(params)
    _count_writes(params)


def _count_writes(params: Params) -> None:
    """Let autograd notice if something it saved was overwritten."""
    written = (getattr(params, name) for name in OUTPUTS)
    torch.autograd.graph.increment_version([tensor for tensor in written if tensor is not None])


def _fake_attention(*args: torch.Tensor, **arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    params = schema.params_of(*args, **arguments)
    _refuse_gradients(params)
    q, out_shape = params.q, (*params.q.shape[:-1], columns_of_values(params))
    lse_shape = out_shape[:-1] if params.return_lse else (0,)
    return q.new_empty(out_shape, dtype=default_out_dtype(q.dtype)), q.new_empty(lse_shape, dtype=torch.float32)


def _fake_attention_out(*args: torch.Tensor, **arguments: Any) -> None:
    _refuse_gradients(schema.params_of(*args, **arguments))


def _refuse_gradients(params: Params) -> None:
    """Refuse when a call is traced what would be refused when it runs: it could not be told from the graph any more."""
    for name in schema.FIELDS:
        if isinstance(value := getattr(params, name), torch.Tensor):
            require_tensor(name, value)


def traced(params: Params, stream: Any = None) -> Result:
    """What :func:`skimattn.launch` is in code that is being traced: an operator in the graph."""
    if stream is not None:
        raise expected("stream", "None in compiled code (its kernels run on torch's current stream)", repr(stream))
    if params.out is None and params.lse is None:
        out, lse = torch.ops.skimattn.attention(**schema.arguments_of(params, schema.ATTENTION_FIELDS))
        return (out, lse) if params.return_lse else out
    q, out, lse = params.q, params.out, params.lse
    if out is None:
        out = q.new_empty((*q.shape[:-1], columns_of_values(params)), dtype=default_out_dtype(q.dtype))
    if lse is None and params.return_lse:
        lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    given = schema.arguments_of(params, schema.ATTENTION_OUT_FIELDS) | {"out": out, "lse": lse}
    torch.ops.skimattn.attention_out(**given)
    return (out, lse) if params.return_lse else out


for _name, _schema, _kernel, _fake in (
    ("skimattn::attention", schema.ATTENTION, _attention, _fake_attention),
    ("skimattn::attention_out", schema.ATTENTION_OUT, _attention_out, _fake_attention_out),
):
    define(_name, _schema, tags=_TAGS)
    register_kernel(_name, _DEVICES, _kernel)
    register_fake(_name, _fake)
