"""MLA decode in latent form: one cache whose columns are keys, and the first of them values too."""

from __future__ import annotations

import torch
from skimattn.codegen import matrix
from skimattn.codegen.tiles.split import MLA_MOST_ROWS

from ..errors import expected
from ..params import Params

((HEAD_DIM, HEAD_DIM_V),) = matrix.HEAD_DIMS["mla"]  # which no other call can have


def values_of(params: Params) -> torch.Tensor:
    """The values, also where the call leaves them out."""
    return params.k[..., :HEAD_DIM_V] if params.v is None else params.v


def columns_of_values(params: Params) -> int:
    """How many columns the values have."""
    return HEAD_DIM_V if params.v is None else params.v.shape[-1]


def check_sizes(params: Params, heads_kv: int, packed_rows: int) -> None:
    """Of a call whose q has this many columns, and at most ``packed_rows`` rows times heads to a request."""
    if heads_kv != 1:
        raise expected("k", f"one head, since head_dim {HEAD_DIM} is MLA in latent form", heads_kv)
    if packed_rows > MLA_MOST_ROWS:
        wanted = f"at most {MLA_MOST_ROWS} rows times heads of a request (max_seqlen_q bounds a ragged batch's)"
        raise expected("q", wanted, packed_rows)
    k, v = params.k, params.v
    if v is not None and (v.shape[-1] != HEAD_DIM_V or v.stride() != k.stride()):
        raise expected("v", _WANTED, f"shape {list(v.shape)} with strides {list(v.stride())}")


def check_address(params: Params) -> None:
    """Values that a call of MLA gives are the first columns of its keys."""
    k, v = params.k, params.v
    if v is not None and k.shape[-1] == HEAD_DIM and v.data_ptr() != k.data_ptr():
        raise expected("v", _WANTED, "other memory")


_WANTED = f"None or k[..., :{HEAD_DIM_V}], the same memory, since head_dim {HEAD_DIM} is MLA in latent form"
