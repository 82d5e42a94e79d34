"""Checks of the options of a call: mask, numbers, per-head vectors and thresholds."""

from __future__ import annotations

from itertools import product

import torch
from skimattn.codegen.features import BY_NAME
from skimattn.codegen.matrix import FP8

from ..errors import expected
from ..params import UNLIMITED, Params
from .arguments import TENSORS
from .checks import (
    MAX_DIM,
    TMA_BYTES,
    describe,
    integer,
    number,
    one_of,
    require_aligned,
    require_contiguous,
    require_memory,
    require_near,
    require_shape,
)
from .dtypes import DTYPES
from .masks import WORD_BYTES, mask_bytes
from .problem import Problem

MASKS = {str(name): str(name) for name in BY_NAME["mask"].values} | {"padding": "full"}  # accepted -> in kernel specs
DESCALES = ("q_descale", "k_descale", "v_descale")
_FACTORS = (2.0**-60, 2.0**60)  # kernels hold them, their quotient and their reciprocals in float32
_RANGE = "2**-60 to 2**60"


def mask_name(params: Params) -> str:
    """The mask's name in kernel specs."""
    return MASKS[one_of("mask", params.mask, MASKS)]


def check_mask(params: Params) -> tuple[tuple[int, int], int]:
    """Window and chunk size, each only with its own masks; returns ``(-1, -1)`` and 0 where unused."""
    mask, window, chunk = mask_name(params), params.window_size, params.chunk_size
    if not isinstance(window, tuple) or len(window) != 2:  # a list could change after the launch
        raise expected("window_size", "a pair (left, right), a tuple", repr(window))
    left, right = (integer("window_size", side, -1) for side in window)
    if mask not in ("window", "chunked") and (left, right) != UNLIMITED:
        users = "masks 'window' and 'chunked' use it"
        raise expected("window_size", f"(-1, -1) with mask {params.mask!r} ({users})", window)
    if mask == "chunked":
        chunk = integer("chunk_size", chunk, 1)
        left, right = _window_in_chunk(left, right, chunk)
    elif chunk is not None:
        raise expected("chunk_size", f"None with mask {params.mask!r} (mask='chunked' uses it)", chunk)
    if mask == "custom" and params.custom_mask is None:
        raise expected("custom_mask", "a bool or packed uint8 tensor, since mask is 'custom'", None)
    if mask != "custom" and params.custom_mask is not None:
        raise expected("custom_mask", f"None with mask {params.mask!r} (mask='custom' uses it)", "a tensor")
    if mask != "custom" and params.custom_mask_keys is not None:
        wanted = f"None with mask {params.mask!r} (mask='custom' uses it)"
        raise expected("custom_mask_keys", wanted, params.custom_mask_keys)
    return (left, right), chunk or 0


def _window_in_chunk(left: int, right: int, chunk: int) -> tuple[int, int]:
    """Keys to the left and right, neither -1 any more; no window at all means causal."""
    if (left, right) == UNLIMITED:
        right = 0
    most = min(chunk, MAX_DIM) - 1  # no key of the chunk is farther away, and what kernels add up fits 32 bits
    left, right = (most if side < 0 else min(side, most) for side in (left, right))
    return left, right


def softmax_scale(params: Params) -> float | None:
    """The factor of q.k, None where it follows from the head dim."""
    if params.softmax_scale is None:
        return None
    return number("softmax_scale", params.softmax_scale, f"a finite float above 0, {_RANGE}", *_FACTORS)


def softcap(params: Params) -> float:
    """The cap of the scores; 0 = none."""
    cap = number("softcap", params.softcap, "a finite float that is 0 (off) or more", 0.0)
    return cap and number("softcap", cap, f"0 (off) or a finite float above 0, {_RANGE}", *_FACTORS)


def skip_kind(params: Params) -> str:
    """Which of the three kernels the arguments select."""
    if params.skip_softmax_threshold is None:
        if params.stats is not None:
            raise expected("stats", "None without skip_softmax_threshold (0.0 counts and skips nothing)", "a tensor")
        return "dense"
    return "skip" if params.stats is None else "stat"


def is_number(threshold: object) -> bool:
    """Whether a threshold is given on the host. What is neither that nor a tensor is refused as a number is."""
    return not isinstance(threshold, torch.Tensor)


def threshold_value(params: Params) -> float:
    """A host threshold as a float in [0, 1]; a tensor gives 0, since its values are read on the device."""
    value = params.skip_softmax_threshold
    if value is None or isinstance(value, torch.Tensor):
        return 0.0
    wanted = "None, a float from 0 to 1, or a float32 tensor [B] or [B, Hq]"
    return number("skip_softmax_threshold", value, wanted, 0.0, 1.0)


def check_thresholds(problem: Problem) -> None:
    """Thresholds that are read on the device."""
    name, tensor = "skip_softmax_threshold", problem.params.skip_softmax_threshold
    assert isinstance(tensor, torch.Tensor)
    require_shape(name, tensor, [problem.batch], [problem.batch, problem.heads_q])
    require_near(name, tensor)


def check_head_vectors(problem: Problem) -> None:
    """Sinks and alibi slopes."""
    params, heads = problem.params, problem.heads_q
    if params.sinks is not None:
        require_shape("sinks", params.sinks, [heads])
        require_contiguous("sinks", params.sinks)
    if params.alibi_slopes is not None:
        require_shape("alibi_slopes", params.alibi_slopes, [heads], [problem.batch, heads])
        require_contiguous("alibi_slopes", params.alibi_slopes)
        require_near("alibi_slopes", params.alibi_slopes)


def check_no_descales(params: Params) -> None:
    """Only 8-bit tensors are multiplied by something."""
    v = params.k if params.v is None else params.v
    for name, tensor in zip(DESCALES, (params.q, params.k, v), strict=True):
        dtype = DTYPES[tensor.dtype]
        if getattr(params, name) is not None and dtype not in FP8:
            raise expected(name, f"None with {name[0]} of {dtype} (8-bit tensors use it)", "a tensor")


def check_descales(problem: Problem) -> None:
    """What 8-bit tensors are multiplied by."""
    for name in DESCALES:
        tensor = getattr(problem.params, name)
        if tensor is not None:
            require_shape(name, tensor, [], [1], [problem.batch, problem.heads_kv])
            require_near(name, tensor)


def check_values(params: Params) -> None:
    """Contents of CPU tensors."""
    for name in DESCALES:
        tensor = getattr(params, name)
        if tensor is not None and not bool((tensor.isfinite() & (tensor > 0)).all()):
            raise expected(name, "finite values above 0", tensor.tolist())
    threshold = params.skip_softmax_threshold
    if isinstance(threshold, torch.Tensor) and not bool(((threshold >= 0) & (threshold <= 1)).all()):
        raise expected("skip_softmax_threshold", "values from 0 to 1", threshold.tolist())


def check_custom_mask(problem: Problem) -> None:
    """Form of the custom mask. How wide it must be says ``custom_mask_keys``, else the keys, which ``max_seqlen_k``
    bounds where they are ragged or paged.
    """
    name, last = "custom_mask", problem.params.custom_mask_keys
    tensor = problem.params.custom_mask
    assert tensor is not None
    if last is not None:
        integer("custom_mask_keys", last, 1, MAX_DIM - 1)
    heads, batch, rows = problem.heads_q, problem.batch, problem.rows
    columns = "max_k" if last is None else "custom_mask_keys"
    if problem.ragged:
        require_shape(name, tensor, [rows, columns], [heads, rows, columns])
    else:
        per_head = product(dict.fromkeys((batch, 1)), dict.fromkeys((heads, 1)), (rows,), (columns,))
        require_shape(name, tensor, [rows, columns], [batch, rows, columns], *per_head)
    _check_mask_width(problem, tensor)
    if tensor.dtype == torch.uint8:
        _check_packed_strides(tensor)


def _check_mask_width(problem: Problem, tensor: torch.Tensor) -> None:
    keys, width, packed = problem.custom_keys or problem.len_k, tensor.shape[-1], tensor.dtype == torch.uint8
    loose = problem.ragged or problem.paged or problem.params.cu_seqlens_k is not None
    exact = not packed and (problem.custom_keys > 0 or not loose)
    least = mask_bytes(keys) if packed else keys
    if width >= least and not (exact and width > keys):
        return
    hint = "; max_seqlen_k bounds the keys" if problem.varlen_k else ""
    if width < least:
        hint += "; of a mask for the last n keys only, custom_mask_keys says n"
    what = f"custom_mask_keys={keys}" if problem.custom_keys else f"{keys} keys{hint}"
    unit = "bytes a row" if packed else "columns"
    raise expected("custom_mask", f"{'' if exact else 'at least '}{least} {unit} for {what}", describe(tensor))


def _check_packed_strides(tensor: torch.Tensor) -> None:
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise expected("custom_mask", "a contiguous last dimension (stride 1)", f"strides {list(tensor.stride())}")
    for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True):
        if size > 1 and stride % WORD_BYTES:
            raise expected("custom_mask", "packed rows whose strides are multiples of 4 bytes", f"{stride} bytes")


def multiple_of(name: str, tensor: torch.Tensor) -> int:
    """What the address of an argument's tensor must be a multiple of, in bytes, for TMA and wide loads."""
    if name in ("q", "k", "v", "out"):
        return TMA_BYTES
    return WORD_BYTES if name == "custom_mask" and tensor.dtype == torch.uint8 else 1


def check_alignment(params: Params) -> None:
    """Addresses: of memory that is there, and of what TMA or wide loads read."""
    for name in TENSORS:
        tensor = getattr(params, name)
        if isinstance(tensor, torch.Tensor):
            address = require_memory(name, tensor)
            if name in ("q", "k", "v", "out", "custom_mask"):
                require_aligned(name, address, multiple_of(name, tensor))
