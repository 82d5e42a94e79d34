"""``launch``: validate a call once, choose its kernel once, and enqueue it as often as it comes."""

from __future__ import annotations

import logging
import threading
from typing import Any

import torch

from ._call.outputs import check_skip_map
from ._call.problem import Problem
from ._call.validate import check_addresses, validate
from ._cuda import streams
from ._cuda.device import device
from ._launch import loader
from ._launch.buffers import Buffers, make_buffers
from ._launch.prepared import Prepared
from ._launch.signature import Bound, Scan
from ._select.dispatch import arch_of, reference_arch, spec_of
from ._select.kernels import describe
from .errors import expected
from .params import Params, keep_prepared
from .reference import prefill as reference

LOGGER = logging.getLogger("skimattn")
MAX_KINDS = 4096  # prepared launches kept, a few KB each; the oldest goes first
Result = torch.Tensor | tuple[torch.Tensor, torch.Tensor]

_kinds: dict[tuple[Any, ...], Prepared] = {}
_kinds_lock = threading.Lock()


def launch(params: Params, stream: Any = None) -> Result:
    """Compute attention; asynchronous on a GPU, with the block-exact reference on CPU tensors.

    Args:
        params: the call; launching the same object again skips validation while its tensors stay where they are.
        stream: where to enqueue: None = torch's current stream of q's device, or a stream, or its handle as an int.

    Returns:
        ``out``, or ``(out, lse)`` with ``return_lse=True``.

    Raises:
        ArgumentError: an argument is not acceptable.
        NoKernelError: no kernel computes this, here.
        BuildError: the kernel had to be compiled and could not be, or its files are damaged.
        CudaError: the driver refused.
    """
    if isinstance(params, Params):
        bound = params._prepared
        if isinstance(bound, Bound) and bound.holds():
            return _enqueue(bound, params, stream)
        if isinstance(params.q, torch.Tensor) and params.q.device.type == "cuda":
            return _first_launch(params, stream)
    return _without_gpu(validate(params), stream)


def _enqueue(bound: Bound, params: Params, stream: Any) -> Result:
    """Allocate what is missing, on the stream that writes it, and launch."""
    prepared = bound.prepared
    if stream is None:
        handle = streams.current(prepared.ordinal)
        if prepared.only_out:  # the common case, without what it does not need
            q = params.q
            out = (
                torch.empty_like(q)
                if prepared.out_like_q
                else q.new_empty(prepared.out_shape, dtype=prepared.out_dtype)
            )
            prepared.launch(bound.addresses, (("out", out.data_ptr()),), handle)
            return out
        buffers = make_buffers(params, prepared.out_shape)
    else:
        handle = streams.handle_of(stream, prepared.ordinal)
        with streams.allocating_on(handle, params.q.device):
            buffers = make_buffers(params, prepared.out_shape)
    tensors = (("out", buffers.out), ("lse", buffers.lse), ("custom_mask", buffers.custom_mask))
    fresh = tuple((name, tensor.data_ptr()) for name, tensor in tensors if tensor is not None)
    prepared.launch(bound.addresses, fresh, handle)
    return _result(params, buffers)


def _result(params: Params, buffers: Buffers) -> Result:
    if not params.return_lse:
        return buffers.out
    assert buffers.lse is not None
    return buffers.out, buffers.lse


def _first_launch(params: Params, stream: Any) -> Result:
    """Launch a GPU call object that was not launched before, or whose tensors changed."""
    try:
        scan = Scan(params)
        prepared = _kinds.get(scan.key)
    except (AttributeError, TypeError, RuntimeError):  # not a (dense) tensor, or a value that cannot be hashed
        validate(params)  # says what is wrong
        raise
    if prepared is None:
        problem = validate(params)
        prepared = _prepare(problem, scan.key)
        if prepared is None:
            return _result(params, make_buffers(params, problem.out_shape))
    bound = Bound(scan, prepared)
    if bound.needs_gradient():
        validate(params)
    if not prepared.accepts(scan.addresses):
        check_addresses(params)  # says what is wrong
    keep_prepared(params, bound)
    return _enqueue(bound, params, stream)


def _prepare(problem: Problem, key: tuple[Any, ...]) -> Prepared | None:
    """Choose and load the kernel of a new kind of call; None if there is no row to write."""
    ordinal = problem.device.index
    assert ordinal is not None  # a tensor's device has an index
    gpu = device(ordinal)
    spec = spec_of(problem, arch_of(gpu.capability))
    check_skip_map(problem, describe(spec))
    if problem.empty:
        return None
    loaded = loader.load(gpu, spec)
    prepared = Prepared(problem, make_buffers(problem.params, problem.out_shape), gpu, loaded)
    LOGGER.debug("prepared %s for q %s", loaded.kernel.name, list(problem.params.q.shape))
    with _kinds_lock:
        if len(_kinds) >= MAX_KINDS:
            del _kinds[next(iter(_kinds))]
        _kinds[key] = prepared
    return prepared


def _without_gpu(problem: Problem, stream: Any) -> Result:
    if stream is not None:
        raise expected("stream", "None with CPU tensors", repr(stream))
    kernel = describe(spec_of(problem, reference_arch(problem.dtype)))
    check_skip_map(problem, kernel)
    buffers = make_buffers(problem.params, problem.out_shape)
    if not problem.empty:
        reference.attention(problem, kernel, buffers)
    return _result(problem.params, buffers)
